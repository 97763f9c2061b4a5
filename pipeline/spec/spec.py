"""A spec: its sections, cross-checks and hash.

The sections are those that belong to no component of `synth`; the others are `synth.settings`'.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from eval import settings as evaluation
from eval.settings import CLASSIFIER_NAMES, ClassifierName
from pipeline.sources import Source
from synth import settings
from synth.methods import DRAWING, METHODS
from synth.samplers import DIRECT
from synth.settings import Count, FieldError, Line, Positive, Settings, raise_if_any
from synth.storage import yaml_text

BudgetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]


def _repeated(field: str, values: Sequence[str], expected: str) -> Iterable[FieldError]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield FieldError((field, index), expected, f"{value!r} again")


class Holdout(Settings):
    """Real images kept out of training, to test what the synthetic ones are worth."""

    source: Source
    # Whether they may be shown and measured against openly, as was declared with the budget;
    # otherwise every number made from them stays in the run's internal folder.
    public: bool = False


class Data(Settings):
    """The private set: the budget it draws on, its source, and its declared public facts.

    Size, channels and classes are chosen without looking at the data.
    """

    name: BudgetName
    source: Source
    # N: declared and not counted, so that planning opens no data; ingest refuses another number.
    records: Count
    size: Annotated[int, Field(ge=4, le=512)]
    channels: Literal[1, 3]
    classes: Annotated[tuple[Line, ...], Field(min_length=1, strict=False)]
    holdout: Holdout | None = None
    # Whether these images are public in truth, as in a demonstration: what is measured with them
    # may then be shown. Training is private all the same. It is the ledger that says so.
    public: bool = False
    # Whether to keep one of records that are equal, and to leave out of the training set what lies
    # in a public holdout. N counts what remains.
    drop_doubles: bool = False

    @model_validator(mode="after")
    def _unique_classes(self) -> Self:
        raise_if_any(_repeated("classes", self.classes, "every class once"))
        return self


class Privacy(Settings):
    """(ε, δ) for a record, the clip norm C, and how the noise multiplier σ is found."""

    epsilon: Positive
    delta: Annotated[Positive, Field(lt=1)]
    clip_norm: Positive = 1.0
    # The accountant that finds σ. The ledger always admits by RDP, so a plan calibrated under PRV
    # needs a budget as large as its RDP ε, which `umbra plan` states.
    calibration: Literal["rdp", "prv"] = "rdp"
    # What one record stands for, and how many records one unit (a person, say) may have: the ledger
    # reports the converted guarantee, too.
    unit: Line = "image"
    records_per_unit: Count = 1
    seed: settings.Seed | None = (
        None  # makes masks and noise reproducible and the run VOID of privacy
    )


class Evaluate(Settings):
    """Classifiers trained on synthetic images and tested on real ones; feature statistics."""

    classifiers: Annotated[tuple[ClassifierName, ...], Field(min_length=1, strict=False)] = (
        CLASSIFIER_NAMES
    )
    epochs: Count = evaluation.EPOCHS
    learning_rate: Positive = evaluation.LEARNING_RATE
    # The small extractor that comes with Umbra, or a TorchScript file such as the 2015 Inception.
    features: Literal["builtin"] | Annotated[Path, Field(strict=False)] = Field(
        "builtin", union_mode="left_to_right"
    )
    neighbours: Count = evaluation.NEAREST  # k of precision, recall, density and coverage
    seed: settings.Seed = 0
    # Figures against a private holdout stay inside, unless they are paid for: "dp" releases every
    # classifier's accuracy, and the holdout's images of each class if asked, by the discrete
    # Laplace mechanism. All of it costs this ε (δ = 0) of the holdout's part of the budget.
    release: Literal["dp"] | None = None
    release_epsilon: Positive = 1.0
    release_class_counts: bool = False

    @property
    def releases(self) -> int:
        """Number of queries released by a charged mechanism; each costs an equal share."""
        if self.release is None:
            return 0
        return len(self.classifiers) + self.release_class_counts

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        if self.release is None:
            # A person who writes these believes that something is released.
            raise_if_any(
                FieldError((name,), "release: dp beside it", "no release")
                for name in ("release_class_counts", "release_epsilon")
                if getattr(self, name) != type(self).model_fields[name].default
            )
        raise_if_any(_repeated("classifiers", self.classifiers, "every classifier once"))
        return self


Workers = Literal["auto"] | Count


class Resources(Settings):
    """Workers, processors, memory and storage. Nothing here may change what is computed."""

    # "auto": as many as there is room for, counted whenever the group of workers starts.
    workers: Workers = 1
    cpus_per_worker: Count = 1
    gpus_per_worker: settings.NotNegative = 0
    sampling_actors: Workers = "auto"
    memory_gib_per_worker: Positive | None = None  # None leaves it to Ray
    object_store_gib: Positive | None = None
    # Folder or address (s3://bucket/prefix) that every machine of the cluster reaches, for
    # checkpoints and the release; None keeps them in the run's folder.
    storage: str | None = None

    @model_validator(mode="after")
    def _gpus_are_whole_or_a_share(self) -> Self:
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            expected = "a share of one GPU up to 1, or a whole number"
            raise_if_any([FieldError(("gpus_per_worker",), expected, f"{gpus:g}")])
        return self

    def with_workers(self, workers: Workers) -> "Resources":
        """Return a copy with other numbers of training workers and of sampling actors."""
        return self.model_copy(update={"workers": workers, "sampling_actors": workers})


class Spec(Settings):
    """What a run is asked to do; equal specs have equal `sha256`.

    `method` names how a generator is fitted; the method's sections are required with it.
    """

    name: RunName
    data: Data
    privacy: Privacy
    method: Annotated[str, settings.one_of(METHODS)] = "diffusion"
    model: settings.ModelSettings = Field(default_factory=settings.ModelSettings)
    train: settings.TrainSettings | None = None
    synthesize: settings.SynthesizeSettings
    evaluate: Evaluate | None = None
    resources: Resources = Field(default_factory=Resources)

    @model_validator(mode="before")
    @classmethod
    def _drawn_directly(cls, raw: Any) -> Any:
        """Let a model that draws images itself do so, where no sampler is named."""
        asked = raw.get("synthesize") if isinstance(raw, dict) else None
        if isinstance(asked, dict) and raw.get("method") in DRAWING and "sampler" not in asked:
            return {**raw, "synthesize": {**asked, "sampler": DIRECT}}
        return raw

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        checks = (_training_errors, _network_errors, _synthesis_errors, _evaluation_errors)
        raise_if_any(error for errors in checks for error in errors(self))
        return self

    def corrected(self, other: "Spec") -> "Spec":
        """Return this spec with how it is evaluated taken from `other`.

        That is the section `evaluate`, but for what was paid for, and where the holdout lies; not
        whether anything is public, which decides what is released.
        """
        data, mine, its = self.data, self.evaluate, other.evaluate
        if mine is None or its is None or data.holdout is None or other.data.holdout is None:
            return self
        paid = ("release", "release_epsilon", "release_class_counts")
        kept = paid if mine.release is None else (*paid, "classifiers")
        evaluate = its.model_copy(update={name: getattr(mine, name) for name in kept})
        holdout = data.holdout.model_copy(update={"source": other.data.holdout.source})
        data = data.model_copy(update={"holdout": holdout})
        return self.model_copy(update={"data": data, "evaluate": evaluate})

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
        return yaml_text(self.model_dump(mode="json"))


def _training_errors(spec: Spec) -> Iterator[FieldError]:
    N, delta = spec.data.records, spec.privacy.delta
    if spec.method == "diffusion" and spec.train is None:
        yield FieldError(("train",), "a section, for the method is diffusion", "nothing")
    if spec.method == "moments" and spec.train is not None:
        yield FieldError(("train",), "no section, for the method is moments", "one")
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
    if spec.method != "diffusion":
        return
    for error in spec.model.errors_at(spec.data.size):
        section = "data" if error.path == ("size",) else "model"
        yield replace(error, path=(section, *error.path))


def _synthesis_errors(spec: Spec) -> Iterator[FieldError]:
    synthesize, classes = spec.synthesize, len(spec.data.classes)
    if synthesize.per_class is not None and len(synthesize.per_class) != classes:
        expected = f"one count for each of the {classes} classes"
        found = f"{len(synthesize.per_class)} counts"
        yield FieldError(("synthesize", "per_class"), expected, found)
    if synthesize.sampler == DIRECT and spec.method not in DRAWING:
        expected = f"a sampler, for the model of {spec.method} does not draw images itself"
        yield FieldError(("synthesize", "sampler"), expected, DIRECT)
    if synthesize.sampler == DIRECT and synthesize.guidance > 0:
        expected = "0, or a sampler, for a model that draws images itself is not guided"
        yield FieldError(("synthesize", "guidance"), expected, f"{synthesize.guidance:g}")
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


def submission_errors(spec: Spec) -> Iterator[FieldError]:
    """Yield what a new run is refused for; an older one with such a spec stays readable."""
    if spec.name.startswith("-"):
        # A command would take the run's id for an option.
        expected = "a name that begins with a letter or a digit"
        yield FieldError(("name",), expected, repr(spec.name))
    evaluate = spec.evaluate
    if evaluate is None:
        return
    # Known from the spec alone, and too late to be learnt after the training is paid for.
    if len(spec.data.classes) < 2:
        expected = "no section, for there is one class, or two classes to tell apart"
        yield FieldError(("evaluate",), expected, "one class")
    fewest = max(evaluation.FEWEST_TRAINING, evaluation.fewest_compared(evaluate.neighbours))
    for path, images in (
        (("synthesize",), spec.synthesize.total),
        (("data", "records"), spec.data.records),
    ):
        if images < fewest:
            expected = f"at least {fewest} images to evaluate with {evaluate.neighbours} neighbours"
            yield FieldError(path, expected, str(images))
