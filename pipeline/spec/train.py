"""Section `train`: batch, length and noise multiplicity of the private training."""

import math
from dataclasses import dataclass

from pydantic import model_validator

from pipeline.spec.section import Count, FieldError, Fraction, Positive, Section, raise_if_any
from synth.precision import Precision


@dataclass(frozen=True)
class Schedule:
    """What Poisson sampling needs: probability q of a record in a step, and steps T."""

    sampling_probability: float
    steps: int


class Warmup(Section):
    """A first phase on a DP release of noisy class sums.

    The release is one Gaussian mechanism, charged as the component "warmup". The training
    on it touches no private record and is free: `steps` of `batch` images at
    `learning_rate`.
    """

    noise_multiplier: Positive
    clip_norm: Positive
    steps: Count
    batch: Count
    learning_rate: Positive


class Train(Section):
    """DP-SGD with K = `views` noised copies of a record averaged before its one clip.

    The length is given either as `steps` T or as `epochs`:

    * steps: q = B/N, T = steps. The expected batch is exactly B.
    * epochs: q = 1/⌈N/B⌉, T = epochs·⌈N/B⌉. This is how the DPDM paper (Table 4.9) and
      Opacus count; the expected batch N/⌈N/B⌉ may be a little below B.

    `charge_block` is how many steps are charged to the ledger before they run (a crash
    forfeits what is left of a block). `micro_batch` bounds the records in memory at once
    and changes nothing else; without one it follows from sizes and memory. `precision` is
    what the network computes in; clipping, sums and noise are float64 in any case.
    """

    batch: Count
    steps: Count | None = None
    epochs: Count | None = None
    views: Count = 32
    learning_rate: Positive = 3e-4
    ema: Fraction = 0.999
    warmup: Warmup | None = None
    charge_block: Count = 50
    checkpoint_every: Count = 50
    micro_batch: Count | None = None
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if self.steps is None and self.epochs is None:
            raise_if_any([FieldError((), "either steps or epochs", "neither")])
        if self.steps is not None and self.epochs is not None:
            raise_if_any([FieldError(("epochs",), "either steps or epochs", "both")])
        return self

    def schedule(self, records: int) -> Schedule:
        """q and T for N = `records`, by the rule above."""
        if self.epochs is None:
            assert self.steps is not None  # noqa: S101 - _one_length holds it
            return Schedule(self.batch / records, self.steps)
        per_epoch = math.ceil(records / self.batch)
        return Schedule(1 / per_epoch, self.epochs * per_epoch)
