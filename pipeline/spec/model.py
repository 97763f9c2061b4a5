"""Section `model`: the denoiser's config and the size of its network."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.spec.section import (
    Count,
    FieldError,
    Fraction,
    Positive,
    Section,
    raise_if_any,
    registered,
)

_EDM_DEFAULTS = {"p_mean": -1.2, "p_std": 1.2}


def _configs() -> Iterable[str]:
    from synth.preconditioning import PRECONDITIONINGS

    return PRECONDITIONINGS


class Model(Section):
    """A config (denoiser, noise distribution, weighting) and a DDPM++ U-Net.

    `p_mean` and `p_std` are EDM's log-normal noise distribution: ln σ ~ N(p_mean, p_std²).
    The other configs have no such numbers, so there they are None. `attention` lists the
    resolutions (in pixels) that get attention blocks.
    """

    config: Annotated[str, registered(_configs)] = "edm"
    p_mean: float | None = None
    p_std: Positive | None = None
    base: Annotated[int, Field(ge=4, le=4096, multiple_of=2)] = 32
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (1, 2, 2)
    blocks: Count = 2
    attention: Annotated[tuple[Count, ...], Field(strict=False)] = (7,)
    label_dropout: Fraction = 0.1

    @model_validator(mode="before")
    @classmethod
    def _noise_defaults(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("config", "edm") == "edm":
            given = {key: value for key, value in raw.items() if value is not None}
            return {**raw, **_EDM_DEFAULTS, **given}
        return raw

    @model_validator(mode="after")
    def _noise_fits_config(self) -> "Model":
        if self.config != "edm":
            raise_if_any(
                FieldError((key,), f"no value, for config {self.config} has none", f"{value:g}")
                for key, value in (("p_mean", self.p_mean), ("p_std", self.p_std))
                if value is not None
            )
        return self

    def resolutions(self, size: int) -> tuple[int, ...]:
        """Edge lengths in pixels that the network works at, from `size` downwards."""
        return tuple(size >> level for level in range(len(self.multipliers)))
