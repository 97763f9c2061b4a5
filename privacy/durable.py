"""Atomic, synced writes of local files and folders.

Everything is written under a temporary name, synced and renamed, so a reader, a crash or a second
writer never sees half a file. Object stores are the business of `synth.storage`.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from privacy.errors import InvalidRequest, UmbraError

_PREFIX, _SUFFIX = ".", ".part"
_MANY_FILES = 100

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and run it again",
    errno.EDQUOT: "the disk quota is used up: free some space and run it again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose a folder that may be written to",
    errno.EPERM: "permission denied: choose a folder that may be written to",
    errno.EBUSY: "it is a mount point: name a folder inside it",
}


def write_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write `data` to `path` atomically, replacing what is there; see `new_file`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_file(Path(folder) / "runs" / "head", b"17:ab")
    ...     (Path(folder) / "runs" / "head").read_bytes()
    b'17:ab'
    """
    with new_file(path, sync=sync) as file:
        file.write(data)


@contextmanager
def new_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that is renamed to `path` if the block ends without an error.

    After any error, an interrupt included, the temporary file is gone and `path` is as it was.

    Args:
        path: the file to make or replace; missing parent folders are made.
        sync: sync the file before the rename and its folder after it. Without it a power cut may
            bring back the previous file, but never a mixture of the two.

    Raises:
        UmbraError: the disk is full, read-only or not writable by this user.
        OSError: any other error of the operating system.
    """
    with _explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _temporary_name(path)
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if sync:
            _sync(path.parent)


def create_file(path: Path, data: bytes, mode: int = 0o600) -> bool:
    """Create `path` with `data` unless it exists; return whether this call created it.

    Of several processes that create one path at once exactly one succeeds, and a crash leaves
    either no file or a whole one.

    Raises:
        UmbraError: the disk is full, read-only or not writable by this user.
        OSError: any other error of the operating system.
    """
    with _explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _temporary_name(path)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # A rename would replace another process's file; a link fails where the path exists.
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        _sync(path.parent)
        return True


def append_line(path: Path, line: str) -> None:
    """Append one ASCII line to `path` and sync it.

    Raises:
        UmbraError: the disk is full, read-only or not writable by this user.
        OSError: any other error of the operating system.
    """
    with _explain_os_errors(path), path.open("a", encoding="ascii") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` if the block ends without an error.

    After any error the temporary folder is gone and `path` is as it was.

    Args:
        path: absent or an empty folder; the working folder is filled and not replaced, so that
            whoever stands in it sees what was made.
        replace: accept a folder with content at `path` and replace it once the new one is whole.

    Raises:
        InvalidRequest: there is a file or a folder with content at `path`, without `replace`.
        UmbraError: the disk is full, read-only or not writable by this user.
    """
    if not replace:
        refuse_occupied(path)
    path = path.resolve()
    with _explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _temporary_name(path)
        part.mkdir()
        try:
            yield part
            _sync_tree(part)
            if replace and path.exists():
                shutil.rmtree(path.rename(_temporary_name(path)), ignore_errors=True)
            if _is_working_folder(path):
                _fill(path, part)
            else:
                part.rename(path)
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                refuse_occupied(path)  # another writer was faster
            raise
        _sync(path.parent)


def _is_working_folder(path: Path) -> bool:
    try:
        return path.samefile(Path.cwd())
    except OSError:
        return False


def _fill(path: Path, part: Path) -> None:
    """Move what is in `part` to the empty folder `path`; after an error `path` is empty again."""
    moved: list[Path] = []
    try:
        for entry in sorted(part.iterdir()):
            moved.append(entry.rename(path / entry.name))
    except BaseException:
        for entry in moved:
            entry.rename(part / entry.name)
        raise
    part.rmdir()


def refuse_occupied(path: Path) -> None:
    """Raise InvalidRequest unless `path` is absent or an empty folder."""
    if path.is_dir():
        if next(path.iterdir(), None) is not None:
            raise InvalidRequest(
                f"{path} is not empty: nothing in it was touched; name a new or an empty folder"
            )
    elif path.exists() or path.is_symlink():
        raise InvalidRequest(f"{path} is not a folder: name a new or an empty folder")


def is_leftover(name: str) -> bool:
    """Return whether a file of this name is a temporary one, left by a process that was killed.

    >>> is_leftover(".manifest.json.0123456789ab.part"), is_leftover("manifest.json")
    (True, False)
    """
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed writers left in `folder`, if it exists."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not is_leftover(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    # Random, so that two writers of one name do not write into each other's file.
    return path.with_name(f"{_PREFIX}{path.name}.{secrets.token_hex(6)}{_SUFFIX}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    paths = list(folder.rglob("*"))
    # One sync takes milliseconds and an export of images has tens of thousands of files: from some
    # number on it is faster to sync all disks at once.
    if len(paths) > _MANY_FILES:
        os.sync()
        return
    for path in (*paths, folder):
        _sync(path)


@contextmanager
def _explain_os_errors(path: Path) -> Iterator[None]:
    """Raise UmbraError with advice for the system errors that a user can act on."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None:
            raise
        raise UmbraError(f"cannot write {path}: {advice}; nothing was left half written") from error
