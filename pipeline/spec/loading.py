"""From a YAML file to a Spec: the one place where specs are read."""

from pathlib import Path

from pydantic import ValidationError

from pipeline.spec.errors import Problem, SpecError
from pipeline.spec.explain import explain
from pipeline.spec.spec import Spec
from pipeline.spec.yaml_lines import read_yaml


def load_spec(path: Path) -> Spec:
    """Reads a spec file. Relative paths in it are meant from the folder it is in.

    Raises:
        SpecError: the file cannot be read or says something wrong; all problems at once,
            each with file, line, field, what was expected and what was found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError([Problem(str(path), 1, (), "text in UTF-8", "other bytes")]) from error
    except FileNotFoundError as error:
        raise SpecError([Problem(str(path), None, (), "a spec file", "no such file")]) from error
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise SpecError([Problem(str(path), None, (), "a readable file", found)]) from error
    return parse_spec(text, file=str(path), folder=path.parent)


def parse_spec(text: str, *, file: str = "<spec>", folder: Path = Path()) -> Spec:
    """A spec from YAML text; `file` names it in errors, `folder` is where paths start.

    Raises:
        SpecError: as `load_spec`.
    """
    document = read_yaml(text, file)
    if not isinstance(document.value, dict):
        found = "an empty file" if document.value is None else "something else"
        raise SpecError([Problem(file, 1, (), "the sections of a spec, as key: value", found)])
    try:
        spec = Spec.model_validate(document.value)
    except ValidationError as error:
        raise SpecError(explain(error, document, Spec)) from error
    return _anchored(spec, folder.absolute())


def _anchored(spec: Spec, folder: Path) -> Spec:
    """The same spec with every relative path in it starting at `folder`."""
    data, evaluate = spec.data, spec.evaluate
    changes: dict[str, object] = {"source": data.source.resolved(folder)}
    if data.holdout is not None:
        source = data.holdout.source.resolved(folder)
        changes["holdout"] = data.holdout.model_copy(update={"source": source})
    if evaluate is not None and isinstance(evaluate.features, Path):
        features = folder / evaluate.features.expanduser()
        evaluate = evaluate.model_copy(update={"features": features})
    return spec.model_copy(update={"data": data.model_copy(update=changes), "evaluate": evaluate})
