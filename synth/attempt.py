"""One attempt at a run: where its masks, noise and other draws come from."""

from dataclasses import dataclass, field

import torch

from privacy.keystream import derive, require_key
from privacy.noise import SecureGaussian

_NOISE_DOMAIN = "umbra/attempt-noise/1"
_PUBLIC_DOMAIN = "umbra/attempt-public/1"


@dataclass(frozen=True)
class Attempt:
    """What one attempt at a run draws its randomness from.

    Attributes:
        number: 1, 2, ...; a retry has the next one, and with it fresh masks and noise.
        key: the run's secret, 32 bytes.
        seed: makes noise reproducible and the run void of privacy; None in earnest.
    """

    number: int
    key: bytes = field(repr=False)
    seed: int | None = None

    def noise(self) -> SecureGaussian:
        """Return this attempt's own noise stream."""
        if self.seed is None:
            return SecureGaussian()
        # Even rehearsals never use a noise stream twice: the attempt is part of its seed.
        key = derive(require_key(self.key), _NOISE_DOMAIN, self.seed, self.number)
        return SecureGaussian.seeded(int.from_bytes(key[:8], "big"))

    def generator(self) -> torch.Generator:
        """Return a generator for what needs no privacy: weights and the warm-up's own draws."""
        key = derive(require_key(self.key), _PUBLIC_DOMAIN, self.number)
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
