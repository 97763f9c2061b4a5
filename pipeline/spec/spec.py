"""The whole spec, its cross-checks and its hash."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Self

import yaml
from pydantic import Field, model_validator

from pipeline.spec.sections import Data, Evaluate, Privacy, Resources
from synth.methods import METHODS
from synth.settings import (
    FieldError,
    ModelSettings,
    Settings,
    SynthesizeSettings,
    TrainSettings,
    one_of,
    raise_if_any,
)

RunName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]


class Spec(Settings):
    """What a run is asked to do; equal specs have equal `sha256`.

    `method` names how a generator is fitted; the method's sections are required with it.
    """

    name: RunName
    data: Data
    privacy: Privacy
    method: Annotated[str, one_of(METHODS)] = "diffusion"
    model: ModelSettings = Field(default_factory=ModelSettings)
    train: TrainSettings | None = None
    synthesize: SynthesizeSettings
    evaluate: Evaluate | None = None
    resources: Resources = Field(default_factory=Resources)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        checks = (_training_errors, _network_errors, _synthesis_errors, _evaluation_errors)
        raise_if_any(error for errors in checks for error in errors(self))
        return self

    def canonical_json(self) -> str:
        """Return one line of JSON, keys sorted, defaults left out."""
        # A later version may know further fields: with their defaults left out, the spec of an old
        # run still has the hash that it was submitted under.
        chosen = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(chosen, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of `canonical_json()`."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return YAML that loads back into an equal spec, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _training_errors(spec: Spec) -> Iterator[FieldError]:
    N, delta = spec.data.records, spec.privacy.delta
    if spec.method == "diffusion" and spec.train is None:
        yield FieldError(("train",), "a section, for the method is diffusion", "nothing")
    if delta >= 1 / N:
        # At δ = 1/N publishing one whole record at random would count as private.
        expected = f"a number below 1/records = 1/{N} = {1 / N:.3g}"
        yield FieldError(("privacy", "delta"), expected, f"{delta:g}")
    expected = f"at most the number of records ({N})"
    if spec.train is not None and spec.train.batch > N:
        yield FieldError(("train", "batch"), expected, str(spec.train.batch))
    if (unit := spec.privacy.records_per_unit) > N:
        yield FieldError(("privacy", "records_per_unit"), expected, str(unit))


def _network_errors(spec: Spec) -> Iterator[FieldError]:
    for error in spec.model.errors_at(spec.data.size):
        section = "data" if error.path == ("size",) else "model"
        yield replace(error, path=(section, *error.path))


def _synthesis_errors(spec: Spec) -> Iterator[FieldError]:
    synthesize, classes = spec.synthesize, len(spec.data.classes)
    if synthesize.per_class is not None and len(synthesize.per_class) != classes:
        expected = f"one count for each of the {classes} classes"
        found = f"{len(synthesize.per_class)} counts"
        yield FieldError(("synthesize", "per_class"), expected, found)
    if synthesize.guidance > 0 and spec.model.label_dropout == 0:
        expected = "0, for a model trained with label_dropout 0 has no unconditional part"
        yield FieldError(("synthesize", "guidance"), expected, f"{synthesize.guidance:g}")


def _evaluation_errors(spec: Spec) -> Iterator[FieldError]:
    evaluate, holdout = spec.evaluate, spec.data.holdout
    if evaluate is None:
        return
    if holdout is None:
        expected = "data.holdout with real images to test on (or no section evaluate)"
        yield FieldError(("evaluate",), expected, "no data.holdout")
    elif evaluate.release is not None and holdout.public:
        expected = "no release, for figures against a public holdout are released as they are"
        yield FieldError(("evaluate", "release"), expected, f"{evaluate.release!r}")
