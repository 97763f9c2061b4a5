"""Poisson sampling: every record is in a step's batch independently with probability q."""

import math
from dataclasses import dataclass, field

import numpy as np

from privacy.errors import InvalidRequest
from privacy.keystream import derive, words_at
from privacy.validation import key_bytes, probability, uint64

_DOMAIN = "umbra/poisson/1"


@dataclass(frozen=True)
class PoissonSampler:
    """The masks of one attempt at one run.

    A record's decision is a function of (key, attempt, step, record id) alone, so any worker can
    compute it for any part of the records and the union is always the same batch. Against someone
    who knows the key, sampling amplifies nothing: keep it secret and use it for one run only.

    Attributes:
        key: the run's 32-byte secret (not shown in the repr).
        attempt: number of this attempt at the run; a retry has another one and other masks.
        sampling_probability: q in [2**-64, 1].

    >>> sampler = PoissonSampler(bytes(range(32)), attempt=1, sampling_probability=0.5)
    >>> ids = np.arange(1000)
    >>> mask = sampler.mask(0, ids)
    >>> bool((sampler.mask(0, ids[::-1]) == mask[::-1]).all())
    True
    """

    key: bytes = field(repr=False)
    attempt: int
    sampling_probability: float

    def __post_init__(self) -> None:
        key_bytes(self.key)
        uint64("the attempt", self.attempt)
        # Below 2**-64 the rounded probability would be zero: a sampler that never samples.
        if (q := probability("the sampling probability", self.sampling_probability)) < 2.0**-64:
            raise InvalidRequest(f"the sampling probability must be in [2**-64, 1], found {q!r}")

    def mask(self, step: int, record_ids: np.ndarray) -> np.ndarray:
        """Return which of the given records are in the batch of `step`.

        Args:
            step: number of the step, at least 0.
            record_ids: uint64 array [n], or int64 that are at least 0, in any order.

        Returns:
            bool array [n]; an empty batch is an ordinary outcome.

        Raises:
            InvalidRequest: if the step or the ids are not as above.
        """
        step_key = derive(self.key, _DOMAIN, self.attempt, uint64("the step", step))
        if record_ids.dtype not in (np.uint64, np.int64) or record_ids.ndim != 1:
            found = f"{record_ids.ndim} dimensions of {record_ids.dtype}"
            raise InvalidRequest(f"record ids must be uint64 in one dimension, found {found}")
        if record_ids.size and record_ids.min() < 0:
            raise InvalidRequest("record ids must be at least 0")
        if self.sampling_probability == 1.0:
            # 2**64 is no uint64, and no word is below a threshold of 2**64 - 1 for certain.
            return np.ones(record_ids.shape, dtype=bool)
        # Rounded down: the probability never exceeds the q that is accounted for.
        threshold = int(math.ldexp(self.sampling_probability, 64))
        return words_at(step_key, record_ids) < np.uint64(threshold)
