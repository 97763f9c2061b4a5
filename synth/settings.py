"""The settings of networks, training and sampling: each is defined here, once.

A section of a spec is one of these models, and the component that uses it takes the model. This
module imports no torch, so that a spec is read and checked at once.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticKnownError

from privacy.errors import InvalidRequest
from synth.samplers import DIRECT, SAMPLERS

FieldPath = tuple[str | int, ...]


class Settings(BaseModel):
    """Frozen settings. Unknown names, NaN and values of another type are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


@dataclass(frozen=True)
class FieldError:
    """One invalid field: `path` is relative to the section that reports it."""

    path: FieldPath
    expected: str
    found: str


class InvalidFieldsError(ValueError):
    """Several invalid fields at once; validators raise it, the spec's loader adds the lines."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__(
            "; ".join(
                f"{format_path(e.path)}: expected {e.expected}, found {e.found}"
                for e in self.errors
            )
        )


def raise_if_any(errors: Iterable[FieldError]) -> None:
    """Raise InvalidFieldsError if there are errors."""
    found = tuple(errors)
    if found:
        raise InvalidFieldsError(found)


def format_path(path: FieldPath) -> str:
    """Return the field as a reader writes it.

    >>> format_path(("data", "classes", 2))
    'data.classes[2]'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(the whole spec)"


class ComponentSettings(Settings):
    """Settings that a component of `synth` is built with in code, outside any spec.

    Raises:
        InvalidRequest: a value is refused. (A spec's sections raise pydantic's ValidationError.)
    """

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}"
                if e["loc"]
                else e["msg"]
                for e in error.errors(include_url=False)
            )
            raise InvalidRequest(f"{type(self).__name__}: {problems}") from None


def _normal(value: float) -> float:
    # A subnormal number is never meant, and arithmetic on it loses the digits ε rests on.
    if 0 < abs(value) < sys.float_info.min:
        raise ValueError(f"a number of at least {sys.float_info.min:.3g}")
    return value


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of printable text")
    return text


Line = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Positive = Annotated[float, Field(gt=0), AfterValidator(_normal)]
NotNegative = Annotated[float, Field(ge=0), AfterValidator(_normal)]
Fraction = Annotated[float, Field(ge=0, lt=1), AfterValidator(_normal)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def one_of(names: Iterable[str]) -> AfterValidator:
    """Return a validator that refuses a text which is none of `names`, a registry's keys."""

    def check(value: str) -> str:
        known = list(names)
        if value not in known:
            expected = ", ".join(f"'{name}'" for name in known)
            raise PydanticKnownError("literal_error", {"expected": f"one of {expected}"})
        return value

    return AfterValidator(check)


def _one_of_two(settings: Settings, one: str, other: str) -> Iterable[FieldError]:
    """Yield an error unless exactly one of two fields is set."""
    given = [getattr(settings, name) is not None for name in (one, other)]
    if sum(given) != 1:
        path = (other,) if all(given) else ()
        yield FieldError(path, f"either {one} or {other}", "both" if path else "neither")


PRECONDITIONINGS = ("vp", "ve", "v", "edm")
# EDM's noise levels in training: ln sigma ~ N(p_mean, p_std^2) (Karras et al. 2022).
EDM_P_MEAN, EDM_P_STD = -1.2, 1.2


class NetworkSettings(Settings):
    """Size of the DDPM++ U-Net; the defaults are DPDM's for MNIST."""

    # Channels of the first level, and of each level over them, from full resolution down.
    base: Annotated[int, Field(ge=4, le=4096, multiple_of=2)] = 32
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (1, 2, 2)
    blocks: Count = 2  # residual blocks per level on the way down; one more on the way up
    # Resolutions, in pixels, with self-attention; the lowest always has one in the middle.
    attention: Annotated[tuple[Count, ...], Field(strict=False)] = (7,)

    def resolutions(self, size: int) -> tuple[int, ...]:
        """Return the edge lengths in pixels that the network works at, from `size` down.

        >>> NetworkSettings(multipliers=(1, 2, 2)).resolutions(28)
        (28, 14, 7)
        """
        return tuple(size >> level for level in range(len(self.multipliers)))

    def errors_at(self, size: int) -> Iterable[FieldError]:
        """Yield what prevents a network of this shape for images of `size` pixels."""
        halvings = len(self.multipliers) - 1
        if size % 2**halvings or size >> halvings == 0:
            expected = (
                f"a multiple of {2**halvings}, for {len(self.multipliers)} multipliers "
                f"halve the image {halvings} times"
            )
            yield FieldError(("size",), expected, str(size))
            return
        resolutions = self.resolutions(size)
        for index, resolution in enumerate(self.attention):
            if resolution not in resolutions:
                known = ", ".join(map(str, resolutions))
                expected = f"resolutions the network works at ({known})"
                yield FieldError(("attention", index), expected, str(resolution))


class ModelSettings(NetworkSettings):
    """A preconditioned U-Net."""

    # The preconditioning, which fixes noise distribution and loss weighting, too.
    config: Annotated[str, one_of(PRECONDITIONINGS)] = "edm"
    # EDM's noise distribution; the other preconditionings have no such constants.
    p_mean: float | None = None
    p_std: Positive | None = None
    label_dropout: Fraction = 0.1  # probability with which a record's label is dropped in training

    @model_validator(mode="before")
    @classmethod
    def _noise_defaults(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("config", "edm") == "edm":
            given = {key: value for key, value in raw.items() if value is not None}
            return {**raw, "p_mean": EDM_P_MEAN, "p_std": EDM_P_STD, **given}
        return raw

    @model_validator(mode="after")
    def _noise_fits_config(self) -> Self:
        if self.config != "edm":
            raise_if_any(
                FieldError((key,), f"no value, for config {self.config} has none", f"{value:g}")
                for key, value in self.constants().items()
            )
        return self

    def constants(self) -> dict[str, float]:
        """Return the preconditioning's constants that are set."""
        noise = {"p_mean": self.p_mean, "p_std": self.p_std}
        return {name: value for name, value in noise.items() if value is not None}


class WarmupSettings(Settings):
    """Training on noisy class means before DP-SGD begins."""

    noise_multiplier: Positive  # sigma of the one Gaussian mechanism that releases the class sums
    clip_norm: Positive  # C of an image scaled to [0, 1]
    steps: Count  # gradient steps on the class means; they touch no record and are free
    batch: Count  # images a step
    learning_rate: Positive  # of Adam at the first step; falls linearly to zero


class TrainSettings(Settings):
    """DP-SGD with K = `views` noised copies of a record averaged before its one clip."""

    batch: Count  # B, the expected number of records in a step
    # The length: T = steps and q = B/N; or else T = epochs·⌈N/B⌉ and q = 1/⌈N/B⌉, as the DPDM paper
    # (Table 4.9) and Opacus count: the expected batch may then be a little below B.
    steps: Count | None = None
    epochs: Count | None = None
    views: Count = 32
    learning_rate: Positive = 3e-4  # of Adam at the first step; falls to zero along a cosine
    ema: Fraction = 0.999  # decay of the moving average that is sampled from
    warmup: WarmupSettings | None = None
    # Steps charged to the ledger at a time, before they run, but at most a fiftieth of all; a crash
    # forfeits the rest of a block.
    charge_block: Count = 50
    # Steps after which a checkpoint is due; it is written at the end of a block.
    checkpoint_every: Count = 50
    # Records in memory at a time, with no influence on what is computed; None chooses by memory.
    micro_batch: Count | None = None
    # What the network computes in; clipping, sums and noise are float64 anyway.
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        raise_if_any(_one_of_two(self, "steps", "epochs"))
        return self

    def schedule(self, records: int) -> tuple[float, int]:
        """Return the sampling probability q and the number of steps T for N = `records`.

        >>> TrainSettings(batch=250, steps=7).schedule(1000)
        (0.25, 7)
        """
        if self.steps is not None:
            return self.batch / records, self.steps
        assert self.epochs is not None  # noqa: S101 - `_one_length` checked it
        per_epoch = math.ceil(records / self.batch)
        return 1 / per_epoch, self.epochs * per_epoch


class NoiseLevels(Settings):
    """Noise levels from sigma_max down to sigma_min, on which every sampler runs."""

    steps: Annotated[int, Field(ge=2)] = 50  # number of levels
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0  # how much the levels crowd towards sigma_min; 7 in Karras et al. 2022

    @model_validator(mode="after")
    def _levels_fall(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            expected = f"a number below sigma_max ({self.sigma_max:g})"
            raise_if_any([FieldError(("sigma_min",), expected, f"{self.sigma_min:g}")])
        return self


class ChurnSettings(Settings):
    """EDM's stochastic Heun: noise is added while σ is within [s_min, s_max].

    The defaults are the DPDM paper's best FID setting for MNIST at ε = 10.
    """

    s_churn: NotNegative = 50.0  # total amount of noise, spread over the steps; 0 is Heun's method
    s_min: NotNegative = 0.05
    s_max: Positive = 50.0
    s_noise: Positive = 1.0  # standard deviation; a little over 1 makes up for over-denoising

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.s_min > self.s_max:
            expected = f"a number no greater than s_max ({self.s_max:g})"
            raise_if_any([FieldError(("s_min",), expected, f"{self.s_min:g}")])
        return self


class SynthesizeSettings(NoiseLevels):
    """Sampling from the trained model: post-processing, which costs no privacy."""

    # Images in all, spread evenly over the classes; or else one count a class. Neither may be read
    # off the private data.
    images: Count | None = None
    per_class: Annotated[tuple[int, ...], Field(strict=False)] | None = None
    # By default "direct", where the method's model draws images itself.
    sampler: Annotated[str, one_of((*SAMPLERS, DIRECT))] = "churn"
    guidance: NotNegative = 0.0  # w in D^w = (1+w)·D(x; σ, y) - w·D(x; σ, ∅)
    churn: ChurnSettings | None = None  # of the sampler "churn", and of no other
    shard_rows: Count = 1000  # images in a file
    # Images at a time (None: by the network's size) and what convolutions and attention run in:
    # both change bits of the images, so a spec has them and no machine chooses. bfloat16 is slower
    # on processors that were not made for it (AVX512-BF16, AMX).
    batch: Count | None = None
    precision: Precision = "float32"
    seed: Seed = 0  # public; makes the shards reproducible; not the seed of section privacy

    @model_validator(mode="before")
    @classmethod
    def _churn_defaults(cls, raw: Any) -> Any:
        uses_churn = isinstance(raw, dict) and raw.get("sampler", "churn") == "churn"
        if uses_churn and raw.get("churn") is None:
            return {**raw, "churn": {}}
        return raw

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        raise_if_any(self._errors())
        return self

    def _errors(self) -> Iterable[FieldError]:
        yield from _one_of_two(self, "images", "per_class")
        if self.per_class is not None:
            for index, count in enumerate(self.per_class):
                if count < 0:
                    yield FieldError(("per_class", index), "0 or more", str(count))
            if sum(self.per_class) < 1:
                yield FieldError(("per_class",), "at least one image", "none")
        if self.sampler != "churn" and self.churn is not None:
            expected = f"no section churn, for the sampler is {self.sampler}"
            yield FieldError(("churn",), expected, "one")

    def sampler_settings(self) -> dict[str, Any]:
        """Return what the sampler is built with: its noise levels and its own settings."""
        levels = {name: getattr(self, name) for name in NoiseLevels.model_fields}
        return levels | (self.churn.model_dump() if self.churn else {})

    def class_counts(self, classes: int) -> tuple[int, ...]:
        """Return the images of each class; the first classes get what is left over.

        >>> SynthesizeSettings(images=5).class_counts(3)
        (2, 2, 1)
        """
        if self.per_class is not None:
            return self.per_class
        assert self.images is not None  # noqa: S101 - `_errors` checked it
        share, rest = divmod(self.images, classes)
        return tuple(share + (label < rest) for label in range(classes))

    @property
    def total(self) -> int:
        """Images over all classes."""
        return self.images if self.images is not None else sum(self.per_class or ())
