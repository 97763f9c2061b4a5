"""The sections of a spec that belong to no component of `synth`: data, privacy, resources …"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from eval.settings import CLASSIFIER_NAMES, EPOCHS, LEARNING_RATE, NEAREST, ClassifierName
from pipeline.sources import Source
from synth.settings import (
    Count,
    FieldError,
    Line,
    NotNegative,
    Positive,
    Seed,
    Settings,
    raise_if_any,
)

BudgetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]


def _repeated(field: str, values: Sequence[str], expected: str) -> Iterable[FieldError]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield FieldError((field, index), expected, f"{value!r} again")


class Holdout(Settings):
    """Real images kept out of training, to test what the synthetic ones are worth."""

    source: Source
    # Whether they may be shown and measured against openly; otherwise every number made from them
    # stays in the run's internal folder.
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
    # may then be shown. Training is private all the same.
    public: bool = False

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
    seed: Seed | None = None  # makes masks and noise reproducible and the run VOID of privacy


class Evaluate(Settings):
    """Classifiers trained on synthetic images and tested on real ones; feature statistics."""

    classifiers: Annotated[tuple[ClassifierName, ...], Field(min_length=1, strict=False)] = (
        CLASSIFIER_NAMES
    )
    epochs: Count = EPOCHS
    learning_rate: Positive = LEARNING_RATE
    # The small extractor that comes with Umbra, or a TorchScript file such as the 2015 Inception.
    features: Literal["builtin"] | Annotated[Path, Field(strict=False)] = Field(
        "builtin", union_mode="left_to_right"
    )
    neighbours: Count = NEAREST  # k of precision, recall, density and coverage
    seed: Seed = 0
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
    gpus_per_worker: NotNegative = 0
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
