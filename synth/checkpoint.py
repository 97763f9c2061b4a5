"""Checkpoints of training: complete or skipped, and never unpickled.

A checkpoint is a folder `step-000123/` with three safetensors files and `checkpoint.json`, which
holds the sha256 of each and a digest of itself; in an object store that file is written last, and
without it there is no checkpoint. It holds weights, their moving average and the
optimizer's moments, and nothing that could replay a noise draw or a mask: a retry must draw
fresh ones (privacy rule 6), so there is no field for them and tensors of bytes or booleans, the
form in which generators and masks come, are refused.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from privacy.errors import IntegrityBroken, InvalidRequest
from synth.storage import (
    StoragePath,
    is_half_written,
    remove_folder,
    remove_leftovers,
    write_folder,
)

_RECORD = "checkpoint.json"
_FORMAT = 2
_PARTS = ("model", "ema", "optimizer")
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """The state from which training goes on.

    Attributes:
        step: steps taken so far.
        attempt: which attempt of the run took them.
        phase: the name of the training phase (for example "warmup" or "private").
        model: the weights, a state dict.
        ema: their exponential moving average, a state dict.
        optimizer: a torch optimizer's `state_dict()`.
        ledger_head: hash of the ledger's last row when this was written.
    """

    step: int
    attempt: int
    phase: str
    model: Mapping[str, torch.Tensor] = field(repr=False)
    ema: Mapping[str, torch.Tensor] = field(repr=False)
    optimizer: Mapping[str, Any] = field(repr=False)
    ledger_head: str


@dataclass(frozen=True)
class Search:
    """What `newest` found: a checkpoint, or None, and a sentence for every one it had to skip."""

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...]


def save(folder: StoragePath, checkpoint: Checkpoint) -> StoragePath:
    """Write `folder/step-…/` atomically and return its path.

    A checkpoint of the same step (of an earlier attempt, or a damaged one) is replaced.

    Raises:
        InvalidRequest: a tensor has the type of a generator state or of a mask.
        UmbraError: the disk is full or the store cannot be written; no checkpoint of another step
            was touched.
    """
    target = folder / f"step-{checkpoint.step:06d}"
    moments: dict[str, torch.Tensor] = {}
    structure = _flatten(checkpoint.optimizer, moments)
    parts = dict(zip(_PARTS, (checkpoint.model, checkpoint.ema, moments), strict=True))
    files = {f"{part}.safetensors": _serialise(part, tensors) for part, tensors in parts.items()}
    record: dict[str, Any] = {
        "format": _FORMAT,
        "step": checkpoint.step,
        "attempt": checkpoint.attempt,
        "phase": checkpoint.phase,
        "ledger_head": checkpoint.ledger_head,
        "facts": {},  # part of format 2, never used
        "optimizer": structure,
        # safetensors sorts by its own rules; what zips two state dicts relies on theirs.
        "names": {part: list(tensors) for part, tensors in parts.items()},
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    record["digest"] = _digest(record)
    if isinstance(folder, Path):
        # Internal, also where they lie on storage that is shared.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_folder(target, {**files, _RECORD: _json(record)}, seal=_RECORD)
    return target


def load(path: StoragePath) -> Checkpoint:
    """Read the checkpoint folder `path`; tensors are on the CPU.

    Raises:
        IntegrityBroken: a file is missing or any byte of it is not what was written.
        UmbraError: the store cannot be reached.
    """
    record, files = _read(path)
    tensors = {part: _parse(record["names"][part], data) for part, data in files.items()}
    return Checkpoint(
        step=record["step"],
        attempt=record["attempt"],
        phase=record["phase"],
        model=tensors["model"],
        ema=tensors["ema"],
        optimizer=_unflatten(record["optimizer"], tensors["optimizer"]),
        ledger_head=record["ledger_head"],
    )


def newest(folder: StoragePath) -> Search:
    """Return the sound checkpoint with the most steps, saying which damaged ones were skipped.

    Raises:
        UmbraError: the store cannot be reached.
    """
    skipped: list[str] = []
    for path in _paths(folder):
        if is_half_written(path, _RECORD):
            continue
        try:
            return Search(load(path), tuple(skipped))
        except IntegrityBroken as error:
            skipped.append(f"skipped {path.name}: {error}")
    return Search(None, tuple(skipped))


def keep_last(folder: StoragePath, count: int) -> None:
    """Remove all checkpoints older than the `count` newest sound ones.

    Damaged ones do not count, or they would crowd out what a run could resume from. What writers
    left half written is removed.

    Raises:
        InvalidRequest: `count` < 1.
    """
    if count < 1:
        raise InvalidRequest(f"checkpoints to keep: at least 1 was expected, found {count}")
    sound = 0
    for path in _paths(folder):
        if sound >= count or is_half_written(path, _RECORD):
            remove_folder(path, _RECORD)
            continue
        try:
            _read(path)
            sound += 1
        except IntegrityBroken:
            continue
    remove_leftovers(folder)


def _paths(folder: StoragePath) -> Iterator[StoragePath]:
    """Yield the checkpoint folders, newest first."""
    listed: Iterable[StoragePath] = folder.glob("step-*")
    found = [path for path in listed if _NAME.fullmatch(path.name)]
    yield from sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _digest(record: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(_json(rest)).hexdigest()


def _json(record: Mapping[str, Any]) -> bytes:
    """Serialise to one line: an optimizer's structure is long, and indenting it is slow."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _read(path: StoragePath) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the record of a sound checkpoint, and its files by part."""
    record = _read_record(path)
    return record, {part: _read_part(path, part, record) for part in _PARTS}


def _read_record(path: StoragePath) -> dict[str, Any]:
    try:
        data = (path / _RECORD).read_bytes()
        record = json.loads(data)
        known = record["format"] == _FORMAT
        # Written canonically, so that comparing bytes catches what a parser would forgive.
        sound = _json(record) == data and record["digest"] == _digest(record)
    except OSError as error:
        raise IntegrityBroken(f"{path / _RECORD} is missing or cannot be read") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityBroken(f"{path / _RECORD} is damaged") from error
    if not known:
        raise IntegrityBroken(
            f"{path / _RECORD} is of another format than {_FORMAT}: resume the run with the "
            "version of Umbra that wrote it"
        )
    if not sound:
        raise IntegrityBroken(f"{path / _RECORD} is damaged: its digest does not match")
    return record


def _read_part(path: StoragePath, part: str, record: Mapping[str, Any]) -> bytes:
    file = path / f"{part}.safetensors"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise IntegrityBroken(f"{file} is missing or cannot be read") from error
    if hashlib.sha256(data).hexdigest() != record["files"][file.name]:
        raise IntegrityBroken(f"{file} is damaged: its sha256 does not match")
    return data


def _parse(names: Iterable[str], data: bytes) -> dict[str, torch.Tensor]:
    tensors = safetensors.torch.load(data)
    return {name: tensors[name] for name in names}


def _serialise(part: str, tensors: Mapping[str, torch.Tensor]) -> bytes:
    for name, tensor in tensors.items():
        if tensor.dtype in (torch.uint8, torch.bool):
            raise InvalidRequest(
                f"{part} {name!r} is a {tensor.dtype} tensor: a checkpoint holds weights and "
                "moments, never masks or the state of a noise generator"
            )
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not by `safetensors.torch.save`, which takes twenty times as long for hundreds of tensors and
    # refuses those that share memory, as tied weights do.
    return bytes(safetensors.serialize({name: _spec(tensor) for name, tensor in dense.items()}))


def _spec(tensor: torch.Tensor) -> safetensors.TensorSpec:
    """Say where a tensor lies; it has to be kept until it is written."""
    return safetensors.TensorSpec(
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tensor.shape,
        data_ptr=tensor.data_ptr(),
        data_len=tensor.nbytes,
    )


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Move the tensors of an optimizer state into `tensors`; return the rest as JSON.

    JSON knows neither tuples nor keys that are numbers, and both must come back as they were.
    """
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[_flatten(k, tensors), _flatten(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_flatten(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_flatten(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidRequest(f"a checkpoint cannot hold an optimizer state of {type(value).__name__}")


def _unflatten(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Undo `_flatten`."""
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unflatten(item, tensors) for item in value["tuple"])
    return {_unflatten(key, tensors): _unflatten(item, tensors) for key, item in value["items"]}
