"""What one record may do to a step: at most C / (q N), and nothing if it is not finite."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from privacy.audit.mechanism.results import Check
from privacy.audit.mechanism.runs import Outcome, StepPath, run
from privacy.audit.mechanism.toy import LAYERS, Toy
from privacy.noise import SecureGaussian

_ROUNDING = 1e-6

# The canary is in no batch, and its bound not tried, in one audit of 10**8.
_RECORDS, _STEPS, _Q = 8, 8, 0.9


def levels(name: str, units: np.ndarray, records: int) -> Check:
    """Check that every record moves its coordinates by exactly C / (q N) or not at all.

    Args:
        name: of the check.
        units: [..., layers, width], steps without noise in units of a clipped record.
        records: coordinates that belong to records; nothing may move the others.
    """
    own, idle = units[..., :records], units[..., records:]
    # A record is in the batch, in all of its layers, or it is not.
    taken = own[..., :1, :] > 0.5
    off = max(float(np.abs(own - taken).max()), float(np.abs(idle).max()))
    return Check(
        name,
        off <= _ROUNDING,
        None,
        f"steps of single records lie between {own.min():.6g} and {own.max():.6g} of the bound",
    )


def sensitivity(name: str, path: StepPath, toy: Toy, workers: Sequence[int]) -> Check:
    """Check how far the whole gradient moves when the canary comes: to its bound, or not at all.

    Both runs have the same masks and the same noise, so all of the difference is the record's
    doing, also what it does to others. A canary that is in the batch is far longer than C, so it
    has to move by all of its bound: one that moves by less is weighed by what else is in the
    batch, and among few batches none need have weighed it up.
    """
    again = _FixedSeed.of(path, toy)
    runs = [(again.run(size), again.run(size, canary=False)) for size in workers]
    moved = again.toy.in_units(np.stack([here.gradients - away.gradients for here, away in runs]))
    lengths = np.sqrt(np.square(moved).sum(axis=(-1, -2)) / LAYERS)
    taken = lengths > 0.5
    return Check(
        name,
        # A canary that never came as far as the sum has not tried its bound.
        bool(taken.any() and np.abs(lengths - taken).max() <= _ROUNDING),
        None,
        f"the canary moved it by {lengths.min():.9g} to {lengths.max():.9g} of the bound",
    )


def not_finite(name: str, path: StepPath, toy: Toy, workers: Sequence[int]) -> Check:
    """Check that a NaN or an infinity in one view leaves a step as if the record were absent.

    But for rounding: sums over batches of other sizes are added up in another order. A step that
    stops tells of the record as well.
    """
    again = _FixedSeed.of(path, toy)
    tainted = []
    for size in workers:
        expected = again.run(size, canary=False)
        for bad in (math.nan, math.inf, -math.inf):
            records = again.toy.records.clone()
            records[again.toy.canary, -1, -1, again.toy.canary] = bad
            try:
                found = again.run(size, records=records)
            except Exception as error:  # whatever it is, it stopped the run
                tainted.append(f"{bad} over {size} workers ({type(error).__name__})")
                continue
            moved = np.abs(again.toy.in_units(found.gradients - expected.gradients)).max()
            if not (found.finite and moved <= _ROUNDING):
                tainted.append(f"{bad} over {size} workers")
    detail = f"the step changed for {', '.join(tainted) or 'none of NaN, inf and -inf'}"
    return Check(name, not tainted, None, detail)


@dataclass(frozen=True)
class _FixedSeed:
    """Runs that can be made again: one key, one seed, and most of a few records in every batch."""

    path: StepPath
    toy: Toy
    key: bytes

    @classmethod
    def of(cls, path: StepPath, toy: Toy) -> Self:
        dpsgd = dataclasses.replace(toy.dpsgd, records=_RECORDS, sampling_probability=_Q)
        return cls(
            dataclasses.replace(path, noise=lambda: SecureGaussian.seeded(0)),
            dataclasses.replace(toy, dpsgd=dpsgd),
            path.key(),
        )

    def run(self, workers: int, canary: bool = True, records: Tensor | None = None) -> Outcome:
        everyone = np.arange(_RECORDS)
        return run(
            self.path,
            self.toy,
            workers=workers,
            keys=[self.key],
            steps=_STEPS,
            present=everyone if canary else np.delete(everyone, self.toy.canary),
            records=records,
        )
