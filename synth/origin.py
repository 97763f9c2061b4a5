"""What paid for an artefact: checkpoints, weights and shards carry it, and no other run uses them.

Whoever can write where a run stores its artefacts could put another run's in their place, and have
them released under an ε that never paid for them. So each names its run, reservation and spec, and
what training writes is sealed: a MAC under the run's key, which is stored elsewhere, over those
names and the content.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from privacy.errors import IntegrityBroken
from privacy.keystream import derive

_SEAL_DOMAIN = "umbra/artefact-seal/1"
# The key of the mark in the metadata of safetensors and Parquet files.
MARK = "umbra"


@dataclass(frozen=True)
class Origin:
    """What an artefact was made by and paid from."""

    run: str
    reservation: str
    spec: str  # sha256
    void: bool  # a seeded run: nothing of it guarantees privacy
    key: bytes = field(repr=False)  # the run's, 32 bytes
    # Whether all that the run made is sealed; those begun by older versions sealed nothing.
    sealed: bool = True

    def names(self) -> dict[str, Any]:
        """Return what may be told to anybody."""
        return {name: getattr(self, name) for name in ("run", "reservation", "spec", "void")}

    def mark(self, digest: str) -> dict[str, Any]:
        """Return the sealed mark of an artefact whose content has this sha256."""
        return {**self.names(), "seal": self._seal(digest)}

    def require(self, mark: object, digest: str, artefact: str) -> None:
        """Refuse a mark that is not this origin's over this content.

        Raises:
            IntegrityBroken: the artefact is another run's, has no mark, or was changed.
        """
        self.require_names(mark, artefact)
        seal = mark.get("seal") if isinstance(mark, Mapping) else None
        if not hmac.compare_digest(str(seal), self._seal(digest)):
            raise IntegrityBroken(f"{artefact} was changed: its seal is not that of run {self.run}")

    def require_names(self, mark: object, artefact: str) -> None:
        """Refuse a mark that names another origin, sealed or not; raise IntegrityBroken."""
        found = mark if isinstance(mark, Mapping) else {}
        for name, expected in self.names().items():
            if found.get(name) != expected:
                raise IntegrityBroken(
                    f"{artefact} is not of run {self.run}: its {name} is "
                    f"{found.get(name, 'not stated')!r}, expected {expected!r}. Nothing of it may "
                    "be used under this run's budget: put the run's own back from a backup, or "
                    "submit a new run"
                )

    def _seal(self, digest: str) -> str:
        text = json.dumps([self.names(), digest], sort_keys=True)
        key = derive(self.key, _SEAL_DOMAIN)
        return hmac.digest(key, text.encode(), hashlib.sha256).hex()


def seal_tensors(data: bytes, origin: Origin) -> bytes:
    """Return the safetensors file `data` with the origin's mark in its metadata.

    >>> from safetensors.numpy import load, save
    >>> import numpy as np
    >>> plain, origin = save({"w": np.ones(2)}), Origin("run-1", "r-1", "ab" * 32, False, bytes(32))
    >>> sealed = seal_tensors(plain, origin)
    >>> origin.require(*tensors_mark(sealed), "the weights"), load(sealed)["w"].tolist()
    (None, [1.0, 1.0])
    """
    header, tensors = _header(data)
    mark = origin.mark(_tensors_sha256(header, tensors))
    text = json.dumps({"__metadata__": {MARK: json.dumps(mark)}, **header}).encode()
    # The tensors begin at a multiple of 8 bytes, as the format has it.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tensors


def tensors_mark(data: bytes) -> tuple[Any, str]:
    """Return the mark of a safetensors file, None without one, and the sha256 of its tensors.

    Raises:
        ValueError: it is no such file.
    """
    header, tensors = _header(data)
    text = header.pop("__metadata__", {}).get(MARK)
    return None if text is None else json.loads(text), _tensors_sha256(header, tensors)


def weights_mark(data: bytes) -> dict[str, Any] | None:
    """Return what everything made from the weights file `data` names; None where it names nothing.

    That is the weights' own origin, and their sha256. Raises ValueError on another file.
    """
    mark, _ = tensors_mark(data)
    if mark is None:
        return None
    names = {name: value for name, value in mark.items() if name != "seal"}
    return {**names, "weights": hashlib.sha256(data).hexdigest()}


def _tensors_sha256(header: dict[str, Any], tensors: bytes) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + tensors).hexdigest()


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    # A length of 8 bytes, that much JSON (padded with spaces), and the tensors' bytes.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("a safetensors file begins with a table of its tensors")
    return header, data[8 + length :]
