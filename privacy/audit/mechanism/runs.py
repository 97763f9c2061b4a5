"""Starts of the audited path on toy data."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from privacy.audit.mechanism.path import StepPath
from privacy.audit.mechanism.toy import Toy, mean_output
from privacy.audit.mechanism.workers import run_workers
from privacy.collective import Collective

_MICRO_BATCH = 3  # less than an ordinary batch, so that batches are put together from parts


@dataclass(frozen=True)
class Outcome:
    """What starts gave.

    Attributes:
        gradients: float64 [starts, steps, layers, width] as rank 0 holds them, 0 for what is not
            finite.
        finite: whether all of them were finite.
        agreed: whether every worker of every start held the same.
    """

    gradients: np.ndarray
    finite: bool
    agreed: bool


def run(
    path: StepPath,
    toy: Toy,
    *,
    workers: int,
    keys: list[bytes],
    steps: int,
    present: np.ndarray,
    records: Tensor | None = None,
    attempt: int = 1,
) -> Outcome:
    """Begin a training once for every key and take `steps` steps of each.

    Args:
        path: what is audited.
        toy: records and network.
        workers: how many share the records.
        keys: of the starts; each has its own noise besides.
        steps: taken in each.
        present: int64, ids of the records that are there; the others are zeroed out.
        records: other views than the toys' own.
        attempt: number of the attempt.
    """
    data = toy.records if records is None else records

    def work(collective: Collective) -> np.ndarray:
        owned = present[present % collective.size == collective.rank]

        def gather(positions: np.ndarray) -> tuple[Tensor, ...]:
            return (data[owned[positions]],)

        def take(key: bytes) -> np.ndarray:
            sampler = path.sampler(key, attempt, toy.dpsgd.sampling_probability)
            gradient = path.step(
                toy.dpsgd, sampler, path.noise(), path.engine, collective, _MICRO_BATCH
            )
            taken = [gradient(step, toy.model, mean_output, owned, gather) for step in range(steps)]
            return np.stack([np.stack([part.numpy() for part in one.values()]) for one in taken])

        return np.stack([take(key) for key in keys])

    found, *others = run_workers(workers, work)
    agreed = all(np.array_equal(found, other, equal_nan=True) for other in others)
    finite = np.isfinite(found)
    return Outcome(np.where(finite, found, 0.0), bool(finite.all()), agreed)
