"""Where the files of a run may lie: in a folder, or in an object store behind the same methods.

An object is there whole or not at all, so it is read and written whole. What fails on the way to
the store is told in words: a store that does not answer must never look like a file that is not
there, or a run would begin anew beside its own checkpoints.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.fs as pa_fs

from privacy.errors import InvalidRequest, UmbraError

_CREDENTIALS = (
    "S3 credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or AWS's "
    "own configuration, and have to allow reading, writing, listing and deleting"
)
# Names, because botocore is there only with the extra.
_WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_OPTIONS = {
    # Other processes write what is listed here.
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 60},
}


@dataclass(frozen=True)
class ObjectStat:
    """What is known of an object: its length in bytes, named as `os.stat` names it."""

    st_size: int


@dataclass(frozen=True, order=True)
class ObjectPath:
    """The address of an object, or of all objects below it: `s3://` and `key`, bucket first.

    It has those methods of `pathlib.Path` that readers of a run use. Writing is `put`: `open` is
    for reading, for what a writer leaves when it is killed between two blocks must be no object.

    Raises (every method that asks the store):
        UmbraError: the store does not answer or refuses, in words without any credential.
        FileNotFoundError: there is no such object, where one is read.
        InvalidRequest: the extra `s3` is not installed.
    """

    key: PurePosixPath

    @classmethod
    def at(cls, address: str) -> "ObjectPath":
        """Return the place at `s3://bucket/prefix`; the store is not asked."""
        return cls(PurePosixPath(address.removeprefix("s3://")))

    def __str__(self) -> str:
        return f"s3://{self.key}"

    def __truediv__(self, other: str | PurePath) -> "ObjectPath":
        return ObjectPath(self.key / other)

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.name

    @property
    def suffix(self) -> str:
        """The ending of the last part, with its dot."""
        return self.key.suffix

    @property
    def parent(self) -> "ObjectPath":
        """What this lies below."""
        return ObjectPath(self.key.parent)

    def put(self, data: bytes) -> None:
        """Make `data` the object's content, in one step for every reader."""
        try:
            with self._reached() as store:
                store.pipe_file(str(self.key), data)
        except FileNotFoundError as error:
            raise UmbraError(
                f"{self} cannot be written: there is no bucket {self.key.parts[0]!r}"
            ) from error

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        with self._reached() as store:
            return bytes(store.cat_file(str(self.key)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str) -> io.BytesIO:
        """Return the whole object as a file to read; `mode` is "rb"."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self} is written whole, by `put`")
        return io.BytesIO(self.read_bytes())

    def stat(self) -> "ObjectStat":
        """Return what the store knows of the object."""
        with self._reached() as store:
            return ObjectStat(int(store.info(str(self.key))["size"]))

    def exists(self) -> bool:
        """Whether there is an object here or below."""
        return self._type() is not None

    def is_file(self) -> bool:
        """Whether there is an object here."""
        return self._type() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects below."""
        return self._type() == "directory"

    def is_symlink(self) -> bool:
        """Return False: a store has no links."""
        return False

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield what lies directly below, objects and prefixes."""
        yield from self.glob("*")

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield what lies below and matches, objects and prefixes, in order."""
        with self._reached() as store:
            found = store.glob(f"{self.key}/{pattern}")
        yield from map(self._of, sorted(found))

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield the objects below, however deep, whose names match, in order."""
        with self._reached() as store:
            found = store.find(str(self.key))
        yield from (path for path in map(self._of, sorted(found)) if path.key.match(pattern))

    def filesystem(self) -> pa_fs.FileSystem:
        """Return the store as pyarrow and what is built on it take it; there `key` is the path."""
        return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(_store(self)))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object; a store does not tell whether there was one."""
        with self._reached() as store:
            store.rm_file(str(self.key))

    @staticmethod
    def _of(key: str) -> "ObjectPath":
        return ObjectPath(PurePosixPath(key))

    def _type(self) -> str | None:
        try:
            with self._reached() as store:
                return str(store.info(str(self.key))["type"])
        except FileNotFoundError:
            return None

    @contextmanager
    def _reached(self) -> Iterator[Any]:
        store = _store(self)
        try:
            yield store
        except FileNotFoundError:
            raise
        except Exception as error:
            raise UmbraError(f"{self}: {_reason(error)}") from error


#: A folder or a file of a run, wherever it lies.
Place = Path | ObjectPath


def relative(path: Place, folder: Place) -> str:
    """Return the name of `path` below `folder`, with / between its parts."""
    if isinstance(path, ObjectPath) and isinstance(folder, ObjectPath):
        return path.key.relative_to(folder.key).as_posix()
    return Path(str(path)).relative_to(str(folder)).as_posix()


def lies_in(path: Place, folder: Place) -> bool:
    """Say whether `path` and all below it, links followed, lies in `folder`."""
    if isinstance(path, ObjectPath):
        return isinstance(folder, ObjectPath) and path.key.is_relative_to(folder.key)
    root = folder.resolve() if isinstance(folder, Path) else None
    entries = (entry.resolve() for entry in (path, *path.rglob("*")))
    return root is not None and all(entry.is_relative_to(root) for entry in entries)


@contextmanager
def local_copy(path: Place) -> Iterator[Path]:
    """Hold `path`, a file or all below it, on this machine, for what can read it nowhere else."""
    if isinstance(path, Path):
        yield path
        return
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / path.name
        for file in [path] if path.is_file() else path.rglob("*"):
            target = copy / relative(file, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        yield copy


def _store(path: ObjectPath) -> Any:
    """Return the one file system of this process and thread; it takes credentials from outside."""
    try:
        import s3fs
    except ImportError:
        raise InvalidRequest(
            f"{path} lies in an object store, and what speaks to it is not installed: "
            "pip install 'umbra-synth[s3]'"
        ) from None
    return s3fs.S3FileSystem(**_OPTIONS)


def _reason(error: Exception) -> str:
    """Say what is wrong with the store, in words of our own: a library's may name a key."""
    kind = type(error).__name__
    if isinstance(error, PermissionError) or kind in _WITHOUT_CREDENTIALS:
        return f"the object store refused access. {_CREDENTIALS}"
    return (
        f"the object store did not answer or refused ({kind}). Check the address, "
        "AWS_ENDPOINT_URL and that the store runs; nothing was left half written"
    )
