"""One attempt at a run: where its masks, noise and other draws come from, and who charges it."""

import secrets
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch

from privacy.collective import Collective
from privacy.keystream import KEY_BYTES, derive
from privacy.noise import SecureGaussian
from privacy.validation import key_bytes

_NOISE_DOMAIN = "umbra/attempt-noise/1"
_PUBLIC_DOMAIN = "umbra/attempt-public/1"
_START_DOMAIN = "umbra/attempt-start/1"
_SEEDED_DOMAIN = "umbra/seeded-run/1"


@dataclass(frozen=True)
class Attempt:
    """What one attempt at a run draws its randomness from.

    Attributes:
        number: 1, 2, ...; a retry has the next one, and with it fresh masks and noise.
        key: the secret of this start of the run, 32 bytes, the same on all its workers.
        seed: makes noise reproducible and the run void of privacy; None otherwise.
    """

    number: int
    key: bytes = field(repr=False)
    seed: int | None = None

    @classmethod
    def start(cls, number: int, run_key: bytes, seed: int | None, collective: Collective) -> Self:
        """Begin an attempt on every worker, with a fresh key; `number` is rank 0's."""
        number = collective.broadcast_from_rank0(number)
        if seed is not None:
            # The only case in which a key repeats.
            return cls(number, derive(bytes(KEY_BYTES), _SEEDED_DOMAIN, seed), seed)
        # Fresh whatever the number: two processes that both take themselves for attempt 2, one of
        # them thought dead, still draw other masks.
        fresh = collective.broadcast_from_rank0(secrets.randbits(63))
        return cls(number, derive(run_key, _START_DOMAIN, fresh))

    def noise(self) -> SecureGaussian:
        """Return this attempt's own noise stream."""
        if self.seed is None:
            return SecureGaussian()
        # Even a seeded run never uses a noise stream twice: the attempt is part of its seed.
        key = derive(key_bytes(self.key), _NOISE_DOMAIN, self.seed, self.number)
        return SecureGaussian.seeded(int.from_bytes(key[:8], "big"))

    def generator(self) -> torch.Generator:
        """Return a generator for what needs no privacy: weights and the warm-up's own draws."""
        key = derive(key_bytes(self.key), _PUBLIC_DOMAIN, self.number)
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


class Meter(Protocol):
    """Charges one reservation on the ledger, directly or through an actor."""

    def charge(self, component: str, steps: int) -> str:
        """Charge steps durably before they run and return the ledger's head.

        Raises:
            BudgetRefused: the reservation has fewer steps left; nothing may run.
        """

    def remaining(self, component: str) -> int:
        """Return how many reserved steps were never charged."""
