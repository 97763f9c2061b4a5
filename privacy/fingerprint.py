"""A keyed fingerprint of a data set's content that does not depend on the order of its records."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from privacy.bottom_k import DIGEST_DIGITS, SKETCH_SIZE, shared_records, sketch
from privacy.errors import DataError, InvalidRequest
from privacy.keys import require_key
from privacy.mechanism import step_count

__all__ = ["Content", "content_of", "fingerprint", "shared_records"]

_LANE_BYTES = 256  # 2048 bits


@dataclass(frozen=True)
class Content:
    """What a budget knows of the records that it pays for; nothing can be told from it unkeyed.

    Attributes:
        fingerprint: the same for the same records in any order.
        records: N.
        sketch: keyed digests of a few images, by which overlap with other contents is estimated;
            see `privacy.bottom_k`.

    Raises:
        InvalidRequest: where these cannot be of any data set.
    """

    fingerprint: str
    records: int
    sketch: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.fingerprint, str) or not re.fullmatch(
            r"[!-~]{1,128}", self.fingerprint
        ):
            raise InvalidRequest("A fingerprint must be 1 to 128 printable ASCII characters.")
        object.__setattr__(self, "records", step_count("records", self.records))
        digests = self.sketch
        if not isinstance(digests, tuple) or not all(
            isinstance(digest, str) and re.fullmatch(rf"[0-9a-f]{{{DIGEST_DIGITS}}}", digest)
            for digest in digests
        ):
            raise InvalidRequest(
                f"A sketch must be a tuple of digests of {DIGEST_DIGITS} lower-case hex digits."
            )
        ascending = all(a < b for a, b in pairwise(digests))
        if not ascending or not 1 <= len(digests) <= min(SKETCH_SIZE, self.records):
            raise InvalidRequest(
                f"A sketch of {self.records} records must be 1 to "
                f"{min(SKETCH_SIZE, self.records)} different digests in ascending order, found "
                f"{len(digests)}" + ("." if ascending else ", repeated or out of order.")
            )


def content_of(images: np.ndarray, labels: np.ndarray, key: bytes) -> Content:
    """Return what a budget has to know of a data set, or of a part of one.

    Args and errors are those of `fingerprint`.
    """
    return Content(fingerprint(images, labels, key), len(images), sketch(images, key))


def fingerprint(images: np.ndarray, labels: np.ndarray, key: bytes) -> str:
    """Return a name for the multiset of records that only holders of `key` can compute or test.

    Each record (shape, type, pixel bytes, label) is hashed by HMAC-SHA256 and expanded by
    SHAKE-256 to 2048 bits; these numbers are added mod 2^2048 (Bellare & Micciancio 1997, AdHash)
    and the sum is hashed with the count. Addition forgets the order, keeps repetitions (XOR would
    not), and 2048 bits put the generalised birthday attack (Wagner 2002) beyond 2^90.

    Args:
        images: uint8 [N, H, W, C], as they come from the source, before any resizing.
        labels: int64 [N].
        key: 32 bytes. A plain hash would let anybody test whether they hold the same data.

    Raises:
        DataError: on other shapes or types, or where there are no records.
        InvalidRequest: where the key has not 32 bytes.
    """
    require_key(key)
    _check(images, labels)
    header = f"umbra record 1|{'x'.join(map(str, images.shape[1:]))}|uint8|int64|".encode()
    total = 0
    for image, label in zip(images, labels, strict=True):
        encoded = header + int(label).to_bytes(8, "little", signed=True) + image.tobytes()
        digest = hmac.digest(key, encoded, hashlib.sha256)
        total += int.from_bytes(hashlib.shake_256(digest).digest(_LANE_BYTES), "little")
    total %= 1 << (8 * _LANE_BYTES)
    whole = b"umbra data set 1|" + len(images).to_bytes(8, "little")
    whole += total.to_bytes(_LANE_BYTES, "little")
    return "v1-" + hmac.digest(key, whole, hashlib.sha256).hex()


def _check(images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"A fingerprint needs images as uint8 [N, H, W, C], found {images.dtype} with "
            f"{images.ndim} axes."
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"A fingerprint needs one int64 label for each of {len(images)} images, found "
            f"{labels.dtype} {list(labels.shape)}."
        )
    if images.size == 0:
        raise DataError("A fingerprint needs at least one record that is not empty, found none.")
