"""Cryptographic streams, from which every random decision of a private run comes.

AES-256 in counter mode under sub-keys that keyed BLAKE2b derives from a secret and a context.
`words_at` returns the word of an index, the same for everyone (for masks); `KeyStream` returns the
next words of a sequence, each once only (for noise).
"""

import hashlib
import os
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB

from privacy.validation import KEY_BYTES, key_bytes, uint64

_BLOCK_BYTES = 16
_WORD_BYTES = 8


def os_key() -> bytes:
    """Return a fresh 32-byte key from the operating system."""
    return os.urandom(KEY_BYTES)


def derive(key: bytes, domain: str, *context: int) -> bytes:
    """Derive the 32-byte sub-key of (`domain`, `context`) from `key` by keyed BLAKE2b (RFC 7693).

    It reveals nothing about the key or about another sub-key.

    Raises:
        InvalidRequest: if the key is not 32 bytes or a number is not in [0, 2**64).

    >>> derive(bytes(32), "example/1", 7).hex()[:8]
    'e3882cf9'
    """
    label = domain.encode()
    # The length makes the encoding one to one: no two (domain, context) share it.
    message = len(label).to_bytes(8, "big") + label
    for number in context:
        message += uint64("a number of a key's context", number).to_bytes(8, "big")
    return hashlib.blake2b(message, digest_size=KEY_BYTES, key=key_bytes(key)).digest()


def words_at(key: bytes, indices: np.ndarray) -> np.ndarray:
    """Return the uniform uint64 word that belongs to each index under `key`.

    Args:
        key: 32-byte secret; use one for one purpose only.
        indices: array of any shape, uint64 or, all at least 0, int64.

    Returns:
        uint64 array of the same shape: word(i) is the first half of AES-256(key, i).
    """
    blocks = np.zeros((indices.size, 2), dtype="<u8")
    blocks[:, 0] = indices.reshape(-1)
    # One call on distinct counter blocks is counter mode with our own counter: ECB hides nothing
    # here because there is no plaintext to hide.
    encryptor = Cipher(AES(key_bytes(key)), ECB()).encryptor()  # noqa: S305
    encrypted = np.frombuffer(encryptor.update(blocks.tobytes()), dtype="<u8")
    return encrypted.reshape(-1, 2)[:, 0].astype(np.uint64).reshape(indices.shape)


class KeyStream:
    """The words of the AES-256-CTR stream of a key; it cannot be copied. Not thread-safe.

    Its state may be neither pickled nor used by a forked child: either would return the same words
    a second time, and noise drawn twice cancels out.
    """

    def __init__(self, key: bytes) -> None:
        # The counter starts at zero: a key must never start two streams.
        self._encryptor = Cipher(AES(key_bytes(key)), CTR(bytes(_BLOCK_BYTES))).encryptor()
        self._process = os.getpid()

    def words(self, count: int) -> np.ndarray:
        """Return the next `count` words as a uint64 array.

        Raises:
            RuntimeError: in another process than the one that made this stream.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a forked key stream would repeat its words; make a new one there")
        stream = self._encryptor.update(bytes(count * _WORD_BYTES))
        return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a key stream cannot be pickled or copied: restored state would repeat its words; "
            "make a new one instead"
        )
