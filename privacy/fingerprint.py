"""A keyed fingerprint of a data set's content that does not depend on the order of its records."""

import hashlib
import hmac

import numpy as np

from privacy.errors import DataError
from privacy.keys import require_key

_LANE_BYTES = 256  # 2048 bits


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
