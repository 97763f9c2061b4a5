"""Checkpoints of training: complete or skipped, and never unpickled.

A checkpoint is a folder `step-000123/` with three safetensors files and `checkpoint.json`, which
holds the sha256 of each, the mark of what paid for it, and a digest of itself; in an object store
that file is written last, and without it there is no checkpoint. Nothing in it could replay a noise
draw or a mask: a retry must draw fresh ones (privacy rule 6).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from privacy.collective import Collective
from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from privacy.validation import positive_int
from synth import storage
from synth.origin import Origin
from synth.storage import StoragePath

_RECORD = "checkpoint.json"
_FORMAT = 2
_PARTS = ("model", "ema", "optimizer")
_FIELDS = ("step", "attempt", "phase", "ledger_head")
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """The state from which training goes on: state dicts of weights, their average, optimizer."""

    step: int  # steps taken so far
    attempt: int  # of the run, that took them
    phase: str  # of the training: the component that was charged last
    model: Mapping[str, torch.Tensor] = field(repr=False)
    ema: Mapping[str, torch.Tensor] = field(repr=False)
    optimizer: Mapping[str, Any] = field(repr=False)
    ledger_head: str  # of the charge that paid for the last steps, SEQ:HASH
    # What paid for it, sealed over the sha256 of all the rest: see `Origin`. None in checkpoints of
    # older versions, which their ledger head alone binds.
    mark: Mapping[str, Any] | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Search:
    """What `newest` found: a checkpoint, or None, and a sentence for every one it had to skip."""

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...]


def save(folder: StoragePath, checkpoint: Checkpoint, origin: Origin | None = None) -> StoragePath:
    """Write `folder/step-…/` atomically, replacing one of the same step, and return its path.

    It is sealed as `origin`'s; its own mark is not written again.

    Raises:
        InvalidRequest: a tensor has the type of a generator state or of a mask.
        UmbraError: the disk is full or the store cannot be written; no checkpoint of another step
            was touched.

    >>> from tempfile import TemporaryDirectory
    >>> layer = torch.nn.Linear(2, 1)
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1).state_dict()
    >>> weights = layer.state_dict()
    >>> with TemporaryDirectory() as folder:
    ...     path = save(Path(folder), Checkpoint(20, 1, "dp-sgd", weights, weights, sgd, "ab12"))
    ...     path.name, load(path).step, newest(Path(folder)).skipped
    ('step-000020', 20, ())
    """
    target = folder / f"step-{checkpoint.step:06d}"
    moments: dict[str, torch.Tensor] = {}
    structure = _flatten(checkpoint.optimizer, moments)
    parts = dict(zip(_PARTS, (checkpoint.model, checkpoint.ema, moments), strict=True))
    files = {f"{part}.safetensors": _serialise(part, tensors) for part, tensors in parts.items()}
    record: dict[str, Any] = {
        "format": _FORMAT,
        **{name: getattr(checkpoint, name) for name in _FIELDS},
        "optimizer": structure,
        # safetensors sorts by its own rules; what zips two state dicts relies on theirs.
        "names": {part: list(tensors) for part, tensors in parts.items()},
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    # Format 2 has had this field from the beginning, and nothing in it.
    record["facts"] = {} if origin is None else origin.mark(_content(record))
    record["digest"] = _digest(record)
    if isinstance(folder, Path):
        # Internal, also where they lie on storage that is shared.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    storage.write_folder(target, {**files, _RECORD: _json(record)}, seal=_RECORD)
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
        **{name: record[name] for name in _FIELDS},
        model=tensors["model"],
        ema=tensors["ema"],
        optimizer=_unflatten(record["optimizer"], tensors["optimizer"]),
        mark=record["facts"] or None,
        sha256=_content(record),
    )


def newest(folder: StoragePath) -> Search:
    """Return the sound checkpoint with the most steps, saying which damaged ones were skipped."""
    skipped: list[str] = []
    for path in _paths(folder):
        if storage.is_half_written(path, _RECORD):
            continue
        try:
            return Search(load(path), tuple(skipped))
        except IntegrityBroken as error:
            skipped.append(f"skipped {path.name}: {error}")
    return Search(None, tuple(skipped))


def require_own(found: Checkpoint, origin: Origin | None, where: str) -> None:
    """Refuse a checkpoint that is not the origin's; whoever loads one for a run calls it.

    Of a run that sealed nothing at first one without a mark passes: its ledger head alone binds it.

    Raises:
        IntegrityBroken: it is another run's, has no mark though it must, or was changed.
    """
    if origin is not None and (origin.sealed or found.mark is not None):
        origin.require(found.mark, found.sha256, where)


def resume_point(
    folder: StoragePath, attempt: int, origin: Origin | None, collective: Collective
) -> Checkpoint | None:
    """Return the newest sound checkpoint for an attempt of this number, the same on every worker.

    Raises:
        IntegrityBroken: it is another run's.
        InvalidRequest: this attempt has run before; masks and noise must be fresh.
        UmbraError: the workers do not see the same checkpoints.
    """
    found = newest(folder).checkpoint
    step = -1 if found is None else found.step
    if collective.broadcast_from_rank0(step) != step:
        raise UmbraError(
            "the workers found different checkpoints; put the run's folder on storage that all of "
            "them share"
        )
    if found is None:
        return None
    # The driver has looked, but before the workers started, and it may have started them again.
    require_own(found, origin, f"the checkpoint of step {found.step} in {folder}")
    if found.attempt >= attempt:
        raise InvalidRequest(
            f"attempt {attempt} cannot go on from a checkpoint of attempt {found.attempt}: masks "
            "and noise must be fresh; begin a new attempt"
        )
    return found


def keep_last(folder: StoragePath, count: int) -> None:
    """Remove what is half written and all checkpoints older than the `count` newest sound ones.

    Raises:
        InvalidRequest: `count` < 1.
    """
    positive_int("checkpoints to keep", count)
    sound = 0
    for path in _paths(folder):
        if sound >= count or storage.is_half_written(path, _RECORD):
            storage.remove_folder(path, _RECORD)
            continue
        try:
            _read(path)
            sound += 1
        except IntegrityBroken:
            # A damaged one does not count: it would crowd out what a run could resume from.
            continue
    storage.remove_leftovers(folder)


def _paths(folder: StoragePath) -> list[StoragePath]:
    """Return the checkpoint folders, newest first."""
    listed: Iterable[StoragePath] = folder.glob("step-*")
    found = [path for path in listed if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _content(record: Mapping[str, Any]) -> str:
    """Return the digest of everything that is not said about it."""
    return _digest({key: value for key, value in record.items() if key != "facts"})


def _digest(record: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(_json(rest)).hexdigest()


def _json(record: Mapping[str, Any]) -> bytes:
    # One line: an optimizer's structure is long, and indenting it is slow.
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _read(path: StoragePath) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the record of a sound checkpoint, and its files by part."""
    record = _read_record(path / _RECORD)
    files = {}
    for part in _PARTS:
        file = path / f"{part}.safetensors"
        files[part] = _read_bytes(file)
        if hashlib.sha256(files[part]).hexdigest() != record["files"][file.name]:
            raise IntegrityBroken(f"{file} is damaged: its sha256 does not match")
    return record, files


def _read_record(file: StoragePath) -> dict[str, Any]:
    data = _read_bytes(file)
    try:
        record: dict[str, Any] = json.loads(data)
        known = record["format"] == _FORMAT
        # Written canonically, so that comparing bytes catches what a parser would forgive.
        sound = _json(record) == data and record["digest"] == _digest(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityBroken(f"{file} is damaged") from error
    if not known:
        raise IntegrityBroken(
            f"{file} is of another format than {_FORMAT}: resume the run with the version of Umbra "
            "that wrote it"
        )
    if not sound:
        raise IntegrityBroken(f"{file} is damaged: its digest does not match")
    return record


def _read_bytes(file: StoragePath) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise IntegrityBroken(f"{file} is missing or cannot be read") from error


def _parse(names: Iterable[str], data: bytes) -> dict[str, torch.Tensor]:
    tensors = safetensors.torch.load(data)
    return {name: tensors[name] for name in names}


def _serialise(part: str, tensors: Mapping[str, torch.Tensor]) -> bytes:
    for name, tensor in tensors.items():
        # The types in which generator states and masks come.
        if tensor.dtype in (torch.uint8, torch.bool):
            raise InvalidRequest(
                f"{part} {name!r} is a {tensor.dtype} tensor: a checkpoint holds weights and "
                "moments, never masks or the state of a noise generator"
            )
    # Kept until they are written: a specification holds an address only.
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    specs = {
        name: safetensors.TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tensor.shape,
            data_ptr=tensor.data_ptr(),
            data_len=tensor.nbytes,
        )
        for name, tensor in dense.items()
    }
    # Not by `safetensors.torch.save`, which takes twenty times as long for hundreds of tensors and
    # refuses those that share memory, as tied weights do.
    return bytes(safetensors.serialize(specs))


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Move the tensors of an optimizer state into `tensors`; return the rest as JSON."""
    # JSON knows neither tuples nor keys that are numbers, and both must come back as they were.
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
