"""Section `synthesize`: how many images of which class, and by which sampler."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.spec.section import (
    Count,
    FieldError,
    NotNegative,
    Positive,
    Section,
    Seed,
    raise_if_any,
    registered,
)


class Churn(Section):
    """EDM's stochastic Heun: noise is added while σ is within [s_min, s_max].

    The defaults are the DPDM paper's best FID setting for MNIST at ε = 10.
    """

    s_churn: NotNegative = 50.0
    s_min: NotNegative = 0.05
    s_max: Positive = 50.0
    s_noise: Positive = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> "Churn":
        if self.s_min > self.s_max:
            expected = f"a number no greater than s_max ({self.s_max:g})"
            raise_if_any([FieldError(("s_min",), expected, f"{self.s_min:g}")])
        return self


def _samplers() -> Iterable[str]:
    from synth.samplers import SAMPLERS

    return SAMPLERS


class Synthesize(Section):
    """Sampling from the trained model: post-processing, which costs no privacy.

    The number of images is given either as `images`, spread evenly over the classes, or as
    `per_class`, one count a class. Neither may be read off the private data. `guidance` is
    w in D^w = (1+w)·D(x; σ, y) − w·D(x; σ, ∅). Noise levels run from `sigma_max` down to
    `sigma_min` in `steps` points, spaced by `rho`. `seed` is public and makes the shards
    reproducible; it has nothing to do with the seed of section privacy.

    `batch` images are sampled at a time; None takes what suits the network's size. `precision`
    bfloat16 runs the network's convolutions and attention in it, which is faster on GPUs and on
    processors made for it (AVX512-BF16, AMX) and slower on others; the default is float32
    everywhere. Both decide last bits or more of the images, so they stand in the spec and no
    machine chooses them.
    """

    images: Count | None = None
    per_class: Annotated[tuple[int, ...], Field(strict=False)] | None = None
    sampler: Annotated[str, registered(_samplers)] = "churn"
    steps: Annotated[int, Field(ge=2)] = 50
    guidance: NotNegative = 0.0
    churn: Churn | None = None
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0
    shard_rows: Count = 1000
    batch: Count | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _churn_defaults(cls, raw: Any) -> Any:
        uses_churn = isinstance(raw, dict) and raw.get("sampler", "churn") == "churn"
        if uses_churn and raw.get("churn") is None:
            return {**raw, "churn": {}}
        return raw

    @model_validator(mode="after")
    def _consistent(self) -> "Synthesize":
        raise_if_any(self._findings())
        return self

    def _findings(self) -> list[FieldError]:
        errors = []
        if self.images is None and self.per_class is None:
            errors.append(FieldError((), "either images or per_class", "neither"))
        if self.images is not None and self.per_class is not None:
            errors.append(FieldError(("per_class",), "either images or per_class", "both"))
        if self.per_class is not None:
            for index, count in enumerate(self.per_class):
                if count < 0:
                    errors.append(FieldError(("per_class", index), "0 or more", str(count)))
            if sum(self.per_class) < 1:
                errors.append(FieldError(("per_class",), "at least one image", "none"))
        if self.sampler != "churn" and self.churn is not None:
            expected = f"no section churn, for the sampler is {self.sampler}"
            errors.append(FieldError(("churn",), expected, "one"))
        if self.sigma_min >= self.sigma_max:
            expected = f"a number below sigma_max ({self.sigma_max:g})"
            errors.append(FieldError(("sigma_min",), expected, f"{self.sigma_min:g}"))
        return errors

    def class_counts(self, classes: int) -> tuple[int, ...]:
        """Images of each class; what `images` leaves over goes to the first classes."""
        if self.per_class is not None:
            return self.per_class
        assert self.images is not None  # noqa: S101 - _findings holds it
        share, rest = divmod(self.images, classes)
        return tuple(share + (label < rest) for label in range(classes))

    @property
    def total(self) -> int:
        """Images over all classes."""
        return self.images if self.images is not None else sum(self.per_class or ())
