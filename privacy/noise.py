"""Gaussian noise in float64 from a cryptographic stream, guarded against floating-point attacks."""

import math
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from privacy.keystream import KEY_BYTES, KeyStream, derive, os_key
from privacy.validation import positive_number, uint64

_GUARD = 4  # standard normals that are added for one output
_BLOCK = 1 << 13  # columns of words at a time: small enough to stay in the cache
_SEEDED = "umbra/noise/seeded/1"


def normals(words: np.ndarray) -> np.ndarray:
    """Turn uniform words into independent standard normals, each the guarded sum of four.

    Box and Muller (1958) on 53-bit uniforms u in (0, 1], v in [0, 1):
    g = sqrt(-2 ln u) cos(2 pi v), h = sqrt(-2 ln u) sin(2 pi v). One output is
    (g1 + g2 + g3 + g4) / 2 (Holohan and Braghin, "Secure Random Sampling in Differential
    Privacy", 2021, section 4), another one the same of h.

    Args:
        words: uint64 [8, m], rows 0-3 for u and 4-7 for v.

    Returns:
        float64 [2 m], reaching out to 2 sqrt(2 * 53 ln 2) = 17.1 standard deviations.
    """
    # Adding one keeps u above zero: the logarithm stays finite.
    u = ((words[:_GUARD] >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
    angle = (words[_GUARD:] >> np.uint64(11)) * (2.0**-53 * math.tau)
    radius = np.sqrt(-2.0 * np.log(u))
    # The floating-point numbers that a single transform can reach have holes, which reveal the
    # signal beneath; with four of them an attacker would have to search 2**200 inputs.
    g = (radius * np.cos(angle)).sum(axis=0)
    h = (radius * np.sin(angle)).sum(axis=0)
    return np.concatenate([g, h]) / math.sqrt(_GUARD)


class SecureGaussian:
    """A source of noise that protects privacy, keyed by the operating system.

    Every instance has its own key, which is never shown or stored. It cannot be pickled, copied
    deeply or used in a forked child, so noise that was drawn for one batch can never meet another.
    """

    def __init__(self) -> None:
        self._stream = KeyStream(os_key())
        self._void = False

    @classmethod
    def seeded(cls, seed: int) -> Self:
        """Return a reproducible source, void of privacy, from a seed in [0, 2**64)."""
        noise = cls()
        noise._stream = KeyStream(derive(bytes(KEY_BYTES), _SEEDED, uint64("a seed", seed)))
        noise._void = True
        return noise

    @property
    def void(self) -> bool:
        """True if the noise follows from a seed: it can be subtracted and protects nothing."""
        return self._void

    def standard_normal(self, size: int) -> np.ndarray:
        """Return `size` independent draws from N(0, 1) as a float64 array."""
        size = uint64("the number of draws", size)
        drawn = np.empty(size)
        for start in range(0, size, 2 * _BLOCK):
            count = min(2 * _BLOCK, size - start)
            columns = (count + 1) // 2
            words = self._stream.words(2 * _GUARD * columns).reshape(2 * _GUARD, columns)
            drawn[start : start + count] = normals(words)[:count]
        return drawn

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Return a float64 CPU tensor of `shape`, independent draws from N(0, std**2)."""
        std = positive_number("the standard deviation of noise", std)
        draws = self.standard_normal(math.prod(shape))
        draws *= std  # by numpy: torch would start threads beside those of the step
        return torch.from_numpy(draws).reshape(shape)


def noise_like(
    sums: Mapping[str, Tensor], clip_norm: float, noise_multiplier: float, noise: SecureGaussian
) -> dict[str, Tensor]:
    """Draw N(0, sigma**2 C**2), float64 on the CPU, for every coordinate of sums of sensitivity C.

    Only the names, shapes and order of `sums` are used.
    """
    C = positive_number("the clip norm", clip_norm)
    sigma = positive_number("the noise multiplier", noise_multiplier)
    return {name: noise.gaussian(tuple(total.shape), sigma * C) for name, total in sums.items()}


def add_noise(sums: dict[str, Tensor], drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each sum plus its own draw of `noise_like`; a draw serves these sums only.

    Raises InvalidRequest if a sum is not float64.
    """
    # The result is rounded once, after its division.
    for name, total in sums.items():
        if total.dtype != torch.float64:
            raise InvalidRequest(f"the sum {name!r} must be float64, found {total.dtype}")
    return {name: total + drawn[name].to(total.device) for name, total in sums.items()}


def privatize(
    sums: dict[str, Tensor], clip_norm: float, noise_multiplier: float, noise: SecureGaussian
) -> dict[str, Tensor]:
    """Return sums + N(0, sigma**2 C**2 I): the Gaussian mechanism, with fresh noise.

    >>> sums = {"w": torch.zeros(3, dtype=torch.float64)}
    >>> noised = privatize(sums, clip_norm=1.0, noise_multiplier=2.0, noise=SecureGaussian())
    >>> noised["w"].shape, bool((noised["w"] == 0).any())
    (torch.Size([3]), False)
    """
    return add_noise(sums, noise_like(sums, clip_norm, noise_multiplier, noise))
