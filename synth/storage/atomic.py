"""Files and folders that are there whole or not at all.

In a folder everything is written under a temporary name, synced and renamed, so a reader, a crash
or a second writer never sees half a file. In an object store, which cannot rename, a file is one
put. A folder of several files has a seal there, a file that is put last and removed first: without
its seal it does not exist.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from privacy.errors import InvalidRequest, UmbraError
from synth.storage.path import ObjectPath, Place

_PREFIX, _SUFFIX = ".", ".part"
_MANY = 100  # files; a sync costs milliseconds, and an export of images has tens of thousands

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and run it again",
    errno.EDQUOT: "the disk quota is used up: free some space and run it again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose a folder that may be written to",
    errno.EPERM: "permission denied: choose a folder that may be written to",
    errno.EBUSY: "it is a mount point: name a folder inside it",
}


def write_bytes(path: Place, data: bytes) -> None:
    """Put `data` at `path`, replacing what is there, durably and in one step.

    Raises:
        UmbraError: the disk is full, read-only or not ours, or the store cannot be written; `path`
            is as it was before.
    """
    if isinstance(path, ObjectPath):
        path.put(data)
        return
    with new_file(path) as file:
        file.write(data)


def write_json(path: Place, record: Mapping[str, Any]) -> None:
    """Put `record` at `path` as `json_bytes`; see `write_bytes`."""
    write_bytes(path, json_bytes(record))


def json_bytes(record: Mapping[str, Any]) -> bytes:
    """Serialise to the one form used on disk: sorted keys, one field a line, UTF-8, no NaN.

    Raises:
        ValueError: a number is not finite (it would not be JSON).
    """
    text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` when the block ends without an error.

    The file and its folder are synced before and after the rename. After any error, an interrupt
    included, the temporary file is gone and `path` is as it was.

    Raises:
        UmbraError: the disk is full, read-only or not ours.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Make a folder that takes the name `path` when the block ends without an error.

    Yields the temporary folder to fill. `path` may be absent or an empty folder; with `replace` a
    folder there gives way once the new one is whole. After any error the temporary folder is gone
    and `path` is as it was.

    Raises:
        InvalidRequest: there is a file or a folder with content at `path`, without `replace`.
        UmbraError: the disk is full, read-only or not ours.
    """
    if not replace:
        refuse_occupied(path)
    path = path.resolve()
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        part.mkdir()
        try:
            yield part
            _sync_tree(part)
            if replace:
                _move_aside(path)
            part.rename(path)
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                refuse_occupied(path)  # somebody was faster
            raise
        _sync(path.parent)


def write_folder(path: Place, files: Mapping[str, bytes], seal: str) -> None:
    """Put a folder of `files` at `path`, replacing one that is there; `seal` names one of them.

    In an object store the old folder is gone before the new one is whole.

    Raises:
        UmbraError: the disk is full, read-only or not ours, or the store cannot be written. There
            is then the old folder, or none.
    """
    if isinstance(path, ObjectPath):
        remove_folder(path, seal)
        for name, data in files.items():
            if name != seal:
                (path / name).put(data)
        (path / seal).put(files[seal])
        return
    with new_folder(path, replace=True) as part:
        for name, data in files.items():
            (part / name).write_bytes(data)


def remove_folder(path: Place, seal: str) -> None:
    """Remove a folder of `write_folder`, its seal first."""
    if isinstance(path, ObjectPath):
        for file in ((path / seal), *path.rglob("*")):
            file.unlink()
    else:
        shutil.rmtree(path)


def is_half_written(path: Place, seal: str) -> bool:
    """Say whether a folder of `write_folder` was left by a writer that was killed."""
    return isinstance(path, ObjectPath) and not (path / seal).is_file()


def refuse_occupied(path: Path) -> None:
    """Raise InvalidRequest unless `path` is absent or an empty folder."""
    if path.is_dir():
        if next(path.iterdir(), None) is not None:
            raise InvalidRequest(
                f"{path} is not empty: nothing in it was touched; name a new or an empty folder"
            )
    elif path.exists() or path.is_symlink():
        raise InvalidRequest(f"{path} is not a folder: name a new or an empty folder")


def is_leftover(path: Place) -> bool:
    """Say whether `path` is a temporary name of this module, left by a process that was killed."""
    return path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)


def remove_leftovers(folder: Place) -> None:
    """Remove what killed writers left in `folder`; a folder that is not there has none.

    A store has none either: what it was sent of an unfinished file is no object.
    """
    if isinstance(folder, ObjectPath) or not folder.is_dir():
        return
    for path in folder.iterdir():
        if not is_leftover(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    # Random, so that two writers of one name do not write into each other's file.
    return path.with_name(f"{_PREFIX}{path.name}.{secrets.token_hex(6)}{_SUFFIX}")


def _move_aside(folder: Path) -> None:
    if folder.exists():
        aside = folder.rename(_part(folder))
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Sync all that is in `folder`: one by one, or all disks at once where that is faster."""
    paths = list(folder.rglob("*"))
    if len(paths) > _MANY:
        os.sync()
        return
    for path in (*paths, folder):
        _sync(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a user can do something about into an error that says what."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None:
            raise
        raise UmbraError(f"cannot write {path}: {advice}; nothing was left half written") from error
