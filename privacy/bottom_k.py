"""Bottom-k sketches: how much two data sets share, told from a few keyed digests of each.

Every distinct image is hashed by a keyed function to a number that looks uniform; the k smallest
numbers are the sketch. Two sets hash an image that they share to the same number, so below a
threshold under which both sketches are complete, comparing sketches is comparing a uniform random
sample of the sets themselves (Broder 1997, "On the resemblance and containment of documents";
Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches").

Images alone are hashed, without labels: a relabelled copy is a copy. An altered image is another
image to a hash, however small the alteration: near copies here are sets that share exact images.
"""

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest

import numpy as np

from privacy.errors import DataError
from privacy.keys import require_key

SKETCH_SIZE = 256
"""k. Of two sets of equal size, a share of 5 % is estimated to within about 1.4 %."""

DIGEST_DIGITS = 16
"""Hex digits of a digest, 64 bits: any two of 10^8 images collide with probability under 1/3000."""


@dataclass(frozen=True)
class Overlap:
    """What two sketches say about the sets behind them.

    Attributes:
        share: estimated share, 0 to 1, of the smaller set's distinct images that lie in the other.
        shared: digests that both sketches hold; one is proof of a shared image.
        compared: digests of the smaller set that could be looked up in the other: the estimate is
            the mean of so many yes-or-no answers, and exact where both sets fit into a sketch.
    """

    share: float
    shared: int
    compared: int


def sketch(images: np.ndarray, key: bytes) -> tuple[str, ...]:
    """Return the SKETCH_SIZE smallest digests of the distinct images, ascending, in hex.

    Only holders of `key` can compute or test it. It does not depend on the order of the images or
    on repetitions, and holds every distinct image where there are no more than SKETCH_SIZE.

    Args:
        images: uint8 [N, H, W, C].
        key: the installation's 32 bytes.

    Raises:
        DataError: on another shape or type, or no images.
        InvalidRequest: where the key has not 32 bytes.
    """
    width = DIGEST_DIGITS // 2
    distinct = {digest[:width] for digest in _digests(images, key)}
    return tuple(digest.hex() for digest in nsmallest(SKETCH_SIZE, distinct))


def overlap(one: Sequence[str], other: Sequence[str]) -> Overlap:
    """Estimate from two sketches under one key how much the smaller set shares with the other.

    A sketch knows its whole set up to its largest digest, and everything where it is not full.
    Up to the lesser of the two thresholds both are complete: of the smaller set's digests there, a
    uniform sample of its images, the share is counted that the other set has too. Its standard
    deviation is sqrt(p(1−p)/compared); of sets of equal size it errs upwards, by 0.02 at most,
    since the lesser count divides. A set that is r times smaller leaves about k/r digests to
    compare: if all of it lies in the larger one, that shows but with probability about e^(−k/r).
    """
    limit = min(_threshold(one), _threshold(other))
    mine = {digest for digest in one if digest <= limit}
    theirs = {digest for digest in other if digest <= limit}
    shared, compared = len(mine & theirs), min(len(mine), len(theirs))
    return Overlap(shared / compared if compared else 0.0, shared, compared)


def shared_records(one: np.ndarray, other: np.ndarray, key: bytes) -> bool:
    """Return whether two sets have any image in common: an exact answer, from all their images.

    Args:
        one: uint8 [N, H, W, C].
        other: uint8 [M, H, W, C]; images of another shape are other images.
        key: the installation's 32 bytes.

    Raises:
        DataError: on other shapes or types, or no images.
        InvalidRequest: where the key has not 32 bytes.
    """
    return not set(_digests(one, key)).isdisjoint(_digests(other, key))


def _threshold(digests: Sequence[str]) -> str:
    """Return the largest digest up to which a sketch holds all of its set."""
    return max(digests) if len(digests) >= SKETCH_SIZE else "f" * DIGEST_DIGITS


def _digests(images: np.ndarray, key: bytes) -> Iterator[bytes]:
    """Yield HMAC-SHA256 of every image's shape and pixels, under a key of this use alone."""
    require_key(key)
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise DataError(
            f"Comparing images needs uint8 [N, H, W, C], not empty, found {images.dtype} "
            f"{list(images.shape)}."
        )
    own_key = hmac.digest(key, b"umbra sketch key 1", hashlib.sha256)
    header = f"umbra image 1|{'x'.join(map(str, images.shape[1:]))}|uint8|".encode()
    for image in images:
        yield hmac.digest(own_key, header + image.tobytes(), hashlib.sha256)
