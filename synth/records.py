"""The private records in memory, and the noised views that a step takes of them.

Views are drawn by counter: each number is a function of (seed, stream, index) and of nothing else.
There is no state to carry on, so the numbers of many seeds are drawn at once, anywhere and in any
order (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). They are statistically
sound and no secret: whatever privacy rests on comes from `privacy.keystream`.

Shapes: B seeds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from privacy import keystream
from privacy.errors import InvalidRequest
from privacy.records import OwnedRecords
from privacy.validation import positive_int
from synth.data.shards import from_uint8
from synth.preconditioning import Preconditioning, drop_labels, form_views

_DOMAIN = "umbra/views/2"
# Streams of a record's seed.
_LABEL, _SIGMA, _NOISE = range(3)


@dataclass(frozen=True)
class Records:
    """The private records that a worker owns; the repr shows nothing of them.

    Attributes:
        values: images as bytes, uint8 [n, H, W, C], which are scaled when they are gathered.
        labels: int64 [n], on the device of the images.
        ids: uint64 [n], all different; see `privacy.records.own`.
        total: N, the records of all workers; those that are missing count as zeroed out.
    """

    values: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    ids: np.ndarray = field(repr=False)
    total: int

    def __post_init__(self) -> None:
        n = self.values.shape[:1]
        if self.values.ndim != 4 or self.values.dtype != torch.uint8:
            raise InvalidRequest("records must be images, uint8 [n, H, W, C]")
        if self.labels.shape != n or self.ids.shape != n or self.ids.dtype != np.uint64:
            raise InvalidRequest("records must have a label and an id, uint64, each")

    @classmethod
    def of(cls, owned: OwnedRecords, device: torch.device) -> "Records":
        """Put a worker's images on `device`, as bytes."""
        values, labels = torch.from_numpy(owned.values), torch.from_numpy(owned.labels)
        return cls(values.to(device), labels.to(device), owned.ids, owned.total)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> torch.Size:
        """[C, H, W] of an image."""
        return self.values.permute(0, 3, 1, 2).shape[1:]

    def take(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return images, float32 [m, C, H, W] in [-1, 1], and labels [m] at positions [m]."""
        rows = torch.from_numpy(positions).to(self.labels.device, non_blocking=True)
        return from_uint8(self.values[rows]), self.labels[rows]

    def chunks(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `take` returns for all records, up to `rows` of them at a time."""
        for start in range(0, len(self), rows):
            yield self.take(np.arange(start, min(start + rows, len(self))))


@dataclass(frozen=True)
class NoisedViews:
    """Draws a record's K noised views and drops its label, as a function of (key, step, record).

    Nothing depends on which worker asks, in which micro-batch, or on what device but for last bits,
    so a step is the same step however many workers take it. These draws need no privacy (they are
    no part of the mechanism); they share its key derivation for being reproducible exactly when
    masks are.

    Attributes:
        preconditioning: has the noise distribution p(sigma).
        K: noise multiplicity.
        label_dropout: probability with which a record's label is replaced by `null`.
        null: index of the label "none".
        key: 32 bytes, secret like the masks' key.
        attempt: which attempt of the run this is.

    Raises:
        InvalidRequest: K is not a positive integer.
    """

    preconditioning: Preconditioning
    K: int
    label_dropout: float
    null: int
    key: bytes = field(repr=False)
    attempt: int = 0

    def __post_init__(self) -> None:
        positive_int("noise multiplicity K", self.K)

    def for_step(self, step: int, records: Records) -> Callable[[np.ndarray], tuple[Tensor, ...]]:
        """Return the function from positions in `records` to (image, label, sigma, noise).

        It draws for all its records at once, where they are, and waits for nothing there.
        """
        key = keystream.derive(self.key, _DOMAIN, self.attempt, step)
        seeds = keystream.words_at(key, records.ids).view(np.int64)

        def gather(positions: np.ndarray) -> tuple[Tensor, ...]:
            images, labels = records.take(positions)
            seeds_B = torch.from_numpy(seeds[positions]).to(labels.device, non_blocking=True)
            sigma, noise = form_views(
                self.preconditioning,
                uniform(seeds_B, _SIGMA, (self.K,)),
                normal(seeds_B, _NOISE, (self.K, *records.shape)),
            )
            u_B = uniform(seeds_B, _LABEL, ())
            return images, drop_labels(labels, self.null, self.label_dropout, u_B), sigma, noise

        return gather


def _int64(word: int) -> int:
    """Read an unsigned 64-bit word as torch's int64, which wraps around, holds it."""
    return word - (word >> 63 << 64)


# The word of a counter c under a seed s is mix(s xor mix((c + 1) gamma)), where mix((c + 1) gamma)
# is output c of SplitMix64 started at zero (Steele et al. 2014). Both mixes are one-to-one, so one
# seed never gives the same word twice, and other seeds do not give the same words shifted, as
# SplitMix64 started at each of them might. These are its increment and the multipliers of its
# finaliser, Stafford's variant 13.
_GAMMA = _int64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _int64(0xBF58476D1CE4E5B9), _int64(0x94D049BB133111EB)

_INDEX_BITS = 32  # of a counter: the others name the stream
_UNIFORM_BITS = 52  # one below float64's, so that the middles of all intervals are exact
_ANGLE_BITS = 24  # as many as float32 keeps; the radius takes the other 40, for the sake of tails


def uniform(seeds_B: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Draw U(0, 1), float64 [B, *shape], for every seed [B] int64 of a stream 0, 1, ...

    Each is the middle of one of 2^52 equal intervals, so never 0 and never 1, and the same to the
    last bit on every device. A seed has fewer than 2^32 numbers a stream.

    >>> uniform(torch.tensor([1, 2]), stream=0, shape=(2,)).round(decimals=3).tolist()
    [[0.617, 0.036], [0.242, 0.177]]
    """
    intervals = _shift(_words(seeds_B, stream, math.prod(shape)), 64 - _UNIFORM_BITS)
    middles = intervals.to(torch.float64).add_(0.5).mul_(2.0**-_UNIFORM_BITS)
    return middles.view(len(seeds_B), *shape)


def normal(seeds_B: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Draw N(0, 1), float32 [B, *shape] below 7.6 in size, for every seed [B] of a stream.

    Both numbers of Box and Muller (1958) from each word: sqrt(-2 ln u) cos(2 pi v) and
    sqrt(-2 ln u) sin(2 pi v), with u from the word's upper 40 bits and v from its lower 24.
    """
    count = math.prod(shape)
    words = _words(seeds_B, stream, (count + 1) // 2)
    angle = (words & ((1 << _ANGLE_BITS) - 1)).to(torch.float32).mul_(2 * math.pi / 2**_ANGLE_BITS)
    u = _shift(words, _ANGLE_BITS).to(torch.float32).add_(0.5).mul_(2.0 ** (_ANGLE_BITS - 64))
    pairs = torch.polar(u.log_().mul_(-2).sqrt_(), angle)
    # [B, pairs, 2] in memory, so that a number keeps its place whatever the shape.
    return torch.view_as_real(pairs).flatten(1)[:, :count].reshape(len(seeds_B), *shape)


def _words(seeds_B: Tensor, stream: int, count: int) -> Tensor:
    """Return the first words of a stream, [B, count], of which every bit counts."""
    first = (stream << _INDEX_BITS) + 1
    counters = torch.arange(first, first + count, device=seeds_B.device)
    return _mix(seeds_B[:, None] ^ _mix(counters.mul_(_GAMMA)))


def _mix(z: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser to int64 words in place; one-to-one."""
    z.bitwise_xor_(_shift(z, 30)).mul_(_FIRST)
    z.bitwise_xor_(_shift(z, 27)).mul_(_SECOND)
    return z.bitwise_xor_(_shift(z, 31))


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right, with zeros coming in: torch's own shift of int64 repeats the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
