"""The whole spec, its cross-checks and its hash."""

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from typing import Annotated

import yaml
from pydantic import Field, model_validator

from pipeline.spec.data import Data
from pipeline.spec.evaluate import Evaluate
from pipeline.spec.model import Model
from pipeline.spec.privacy import Privacy
from pipeline.spec.resources import Resources
from pipeline.spec.section import FieldError, Section, raise_if_any
from pipeline.spec.synthesize import Synthesize
from pipeline.spec.train import Train

RunName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]


class Spec(Section):
    """What a run is asked to do. Two specs that ask for the same have the same `sha256`."""

    name: RunName
    data: Data
    privacy: Privacy
    model: Model = Field(default_factory=Model)
    train: Train
    synthesize: Synthesize
    evaluate: Evaluate | None = None
    resources: Resources = Field(default_factory=Resources)

    @model_validator(mode="after")
    def _sections_agree(self) -> "Spec":
        raise_if_any(
            chain(
                _privacy_findings(self),
                _network_findings(self),
                _synthesis_findings(self),
                _evaluation_findings(self),
            )
        )
        return self

    def canonical_json(self) -> str:
        """One line of JSON, keys sorted, defaults left out.

        A later version may know further fields: with their defaults left out, the spec of an old
        run still has the hash that it was submitted under.
        """
        chosen = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(chosen, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of `canonical_json()`."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def to_yaml(self) -> str:
        """YAML that loads back into an equal spec, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _privacy_findings(spec: Spec) -> Iterator[FieldError]:
    N, delta = spec.data.records, spec.privacy.delta
    if delta >= 1 / N:
        # At δ = 1/N publishing one whole record at random would count as private.
        expected = f"a number below 1/records = 1/{N} = {1 / N:.3g}"
        yield FieldError(("privacy", "delta"), expected, f"{delta:g}")
    if spec.train.batch > N:
        expected = f"at most the number of records ({N})"
        yield FieldError(("train", "batch"), expected, str(spec.train.batch))
    if spec.privacy.records_per_unit > N:
        expected = f"at most the number of records ({N})"
        found = str(spec.privacy.records_per_unit)
        yield FieldError(("privacy", "records_per_unit"), expected, found)


def _network_findings(spec: Spec) -> Iterator[FieldError]:
    size, model = spec.data.size, spec.model
    halvings = len(model.multipliers) - 1
    if size % 2**halvings or size >> halvings == 0:
        expected = (
            f"a multiple of {2**halvings}, for {len(model.multipliers)} multipliers "
            f"halve the image {halvings} times"
        )
        yield FieldError(("data", "size"), expected, str(size))
        return
    resolutions = model.resolutions(size)
    for index, resolution in enumerate(model.attention):
        if resolution not in resolutions:
            known = ", ".join(map(str, resolutions))
            expected = f"resolutions the network works at ({known})"
            yield FieldError(("model", "attention", index), expected, str(resolution))


def _synthesis_findings(spec: Spec) -> Iterator[FieldError]:
    synthesize, classes = spec.synthesize, len(spec.data.classes)
    if synthesize.per_class is not None and len(synthesize.per_class) != classes:
        expected = f"one count for each of the {classes} classes"
        found = f"{len(synthesize.per_class)} counts"
        yield FieldError(("synthesize", "per_class"), expected, found)
    if synthesize.guidance > 0 and spec.model.label_dropout == 0:
        expected = "0, for a model trained with label_dropout 0 has no unconditional part"
        yield FieldError(("synthesize", "guidance"), expected, f"{synthesize.guidance:g}")


def _evaluation_findings(spec: Spec) -> Iterator[FieldError]:
    evaluate, holdout = spec.evaluate, spec.data.holdout
    if evaluate is None:
        return
    if holdout is None:
        expected = "data.holdout with real images to test on (or no section evaluate)"
        yield FieldError(("evaluate",), expected, "no data.holdout")
    elif evaluate.release is not None and holdout.public:
        expected = "no release, for figures against a public holdout are released as they are"
        yield FieldError(("evaluate", "release"), expected, f"{evaluate.release!r}")
