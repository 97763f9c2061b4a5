"""Read a Spec from YAML; every error has file, line and field."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.sources.base import resolve
from pipeline.spec.spec import Spec, submission_errors
from privacy.errors import InvalidRequest
from synth.settings import FieldPath, InvalidFieldsError, format_path

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Problem:
    """One error in a spec: where it is, what was expected there and what was found."""

    file: str
    line: int | None
    path: FieldPath
    expected: str
    found: str
    hint: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        hint = f" ({self.hint})" if self.hint else ""
        field = f"{format_path(self.path)}: " if self.path else ""
        return f"{place}: {field}expected {self.expected}, found {self.found}{hint}"


class SpecError(InvalidRequest):
    """A spec that cannot be run; `problems` are in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("\n".join(map(str, self.problems)))


class _CoreLoader(yaml.SafeLoader):
    """Resolve plain scalars by the core schema of YAML 1.2."""

    # PyYAML reads YAML 1.1, where 1e-5 is text, `no` is false and 1:30 is ninety.
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attribute


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _CoreLoader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})\Z"), _first)


@dataclass
class Document:
    """Plain values of a YAML file, and the line (from 1) of each field."""

    file: str
    value: Any = None
    lines: dict[FieldPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    nodes: set[int] = field(default_factory=set)  # that were read; an alias names one of them again
    # The text of each scalar as it is in the file: what 010 or 1e3 became is not what was written.
    written: dict[FieldPath, str] = field(default_factory=dict)

    def line(self, path: FieldPath) -> int:
        """Return the line of `path`, or of the nearest section around it that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def add(self, path: FieldPath, line: int, expected: str, found: str) -> None:
        """Add a problem."""
        # Reading goes on, so that all of them are reported at once.
        self.problems.append(Problem(self.file, line, path, expected, found))


def read_yaml(text: str, file: str) -> Document:
    """Read one YAML document of plain values.

    Raises:
        SpecError: bad syntax, duplicate keys, aliases, tags, or keys that are not text.
    """
    document = Document(file)
    try:
        node = yaml.compose(text, _CoreLoader)
        if node is not None:
            document.value = _plain(node, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        document.add((), line, "YAML", error.problem or "a syntax error")
    except yaml.YAMLError as error:
        document.add((), 1, "YAML", str(error).splitlines()[0])
    except RecursionError:
        document.add((), 1, "YAML of a few levels", "very deep nesting")
    if document.problems:
        raise SpecError(document.problems)
    return document


def _plain(node: yaml.Node, path: FieldPath, document: Document) -> Any:
    """Return the plain value of a node; add its lines and problems to `document`."""
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    # An alias names a node again; written out, a small file could fill the memory.
    if id(node) in document.nodes:
        document.add(path, line, "values written out", "a YAML alias (*name)")
        return None
    document.nodes.add(id(node))
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_plain(item, (*path, at), document) for at, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        document.written[path] = node.value
        with suppress(ValueError):
            return _scalar(kind, node.value)
    document.add(path, line, "a plain value", f"YAML tag {node.tag}")
    return None


def _mapping(node: yaml.MappingNode, path: FieldPath, document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        is_scalar, key = isinstance(key_node, yaml.ScalarNode), key_node.value
        at = (*path, key)
        if not is_scalar or key_node.tag != _TAG + "str":
            document.add(path, line, "keys that are names", key if is_scalar else "a collection")
        elif key in result:
            expected = f"every key once (it is on line {document.lines[at]} already)"
            document.add(at, line, expected, "it again")
        else:
            document.lines[at] = line
            result[key] = _plain(value_node, at, document)
    return result


def _scalar(kind: str, text: str) -> Any:
    """Return the value of a scalar; raise ValueError for any but a plain value's tag."""
    match kind:
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        case "float":
            return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
    raise ValueError(kind)


_SECTION = "a section of key: value lines"
_EXPECTED = {
    "missing": "a value, for it is required",
    "bool_type": "true or false",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "a path",
    **dict.fromkeys(("int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), _SECTION),
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a value, for it is required",
}
_MAX_FOUND = 80


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> list[Problem]:
    """Return what a validation error found in `document`, one problem a field."""
    problems: dict[FieldPath, Problem] = {}
    for details in error.errors(include_url=False):
        for problem in _problems(details, document, model):
            problems[problem.path] = _merged(problems.get(problem.path), problem)
    return list(problems.values())


def _merged(earlier: Problem | None, later: Problem) -> Problem:
    """Merge the problems of one field."""
    # A field of two types (a count or "auto") fails for each.
    if earlier is None or later.expected in earlier.expected:
        return earlier or later
    expected = f"{earlier.expected} or {later.expected}"
    return replace(earlier, expected=expected, hint=earlier.hint or later.hint)


def _problems(
    details: ErrorDetails, document: Document, model: type[BaseModel]
) -> Iterator[Problem]:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    path = _written_path(details["loc"], document.value, missing=kind == "missing")
    reason = context.get("error")
    if isinstance(reason, InvalidFieldsError):
        for error in reason.errors:
            at = path + error.path
            yield Problem(document.file, document.line(at), at, error.expected, error.found)
        return
    limits = {name: f"{v:g}" if isinstance(v, float) else v for name, v in context.items()}
    expected = _EXPECTED.get(kind, details["msg"]).format(**limits)
    found, hint = _show(value), ""
    match kind:
        case "value_error":
            expected = str(reason)
        case "missing":
            found = "nothing"
            hint = _suggest(path[-1], _unused_keys(path[:-1], document, model))
        case "extra_forbidden":
            known = _known_keys(details["loc"][:-1], model)
            expected = f"one of {', '.join(known)}" if known else "no such key"
            found, hint = f"unknown key {_show(path[-1])}", _suggest(path[-1], known)
        case "union_tag_invalid":
            path = (*path, context["discriminator"].strip("'"))
            found = _show(context["tag"])
            hint = _suggest(context["tag"], _quoted(context["expected_tags"]))
        case "union_tag_not_found":
            path, found = (*path, context["discriminator"].strip("'")), "nothing"
        case "literal_error":
            hint = _suggest(value, _quoted(context["expected"]))
        case "string_type" if isinstance(value, int | float):
            # What is in the file, not the number that it became: "08" and not "8".
            hint = f'as text it is written "{document.written.get(path, found)}"'
    yield Problem(document.file, document.line(path), path, expected, found, hint)


def _written_path(loc: tuple[int | str, ...], value: Any, *, missing: bool) -> FieldPath:
    """Return `loc` without the names of union members that pydantic puts in between."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        is_key = isinstance(value, dict) and part in value
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_key or is_index:
            path.append(part)
            value = value[part]
        elif missing and index == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _known_keys(loc: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys that the section at `loc` may have; none where a union leaves it open."""
    candidates = [model]
    for part in loc:
        tagged = [c for c in candidates if _tag(c) == part]
        if tagged:
            candidates = tagged
            continue
        fields = [c.model_fields[part] for c in candidates if part in c.model_fields]
        candidates = [m for f in fields for m in _models_in(f.annotation)]
    return list(candidates[0].model_fields) if len(candidates) == 1 else []


def _unused_keys(path: FieldPath, document: Document, model: type[BaseModel]) -> list[str]:
    """Return unknown keys written at `path`: perhaps a misspelt required one."""
    written, known = document.value, _known_keys(path, model)
    for part in path:
        written = written[part]
    return [key for key in written if key not in known] if known else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _tag(model: type[BaseModel]) -> str | None:
    """Return the value of `kind` that marks a member of a union."""
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind and get_args(kind.annotation) else None


def _quoted(text: str) -> list[str]:
    """Return the names in pydantic's list "'a', 'b' or 'c'"."""
    return text.split("'")[1::2]


def _suggest(word: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _show(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= _MAX_FOUND else text[:_MAX_FOUND] + "…"


def load_spec(path: Path, *, kept: bool = False) -> Spec:
    """Read a spec file; relative paths in it start at its folder.

    A spec that is `kept` in a run's folder may be older than rules for what is submitted now.

    Raises:
        SpecError: the file cannot be read or is no valid spec; it holds all problems at once.
    """
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError([Problem(file, 1, (), "text in UTF-8", "other bytes")]) from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        found = "no such file" if missing else error.strerror or type(error).__name__
        raise SpecError([Problem(file, None, (), "a spec file", found)]) from error
    return parse_spec(text, file=file, folder=path.parent, kept=kept)


def parse_spec(
    text: str, *, file: str = "<spec>", folder: Path = Path(), kept: bool = False
) -> Spec:
    """Read a spec from YAML text; `file` names it in errors, paths start at `folder`.

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
    errors = () if kept else tuple(submission_errors(spec))
    if errors:
        raise SpecError(
            Problem(file, document.line(e.path), e.path, e.expected, e.found) for e in errors
        )
    return _anchored(spec, folder.absolute())


def _anchored(spec: Spec, folder: Path) -> Spec:
    """Return the spec with every relative path in it starting at `folder`."""
    data, holdout, evaluate = spec.data, spec.data.holdout, spec.evaluate
    if holdout is not None:
        holdout = holdout.model_copy(update={"source": holdout.source.resolved(folder)})
    if evaluate is not None and isinstance(evaluate.features, Path):
        features = resolve(evaluate.features, folder)
        evaluate = evaluate.model_copy(update={"features": features})
    source = data.source.resolved(folder)
    data = data.model_copy(update={"source": source, "holdout": holdout})
    return spec.model_copy(update={"data": data, "evaluate": evaluate})
