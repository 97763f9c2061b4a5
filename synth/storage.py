"""Storage of a run's files: a local folder, or an object store behind the same methods.

A local file is written by `privacy.durable`. In an object store, which cannot rename, a file is
one put. A folder of several files has a seal there, a file that is written last and removed first:
without its seal it does not exist.
"""

import io
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from privacy import durable
from privacy.errors import InvalidRequest, UmbraError

_CREDENTIALS = (
    "S3 credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or AWS's "
    "own configuration, and have to allow reading, writing, listing and deleting"
)
# By name, because botocore is installed only with the extra.
_WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*/?")
# PyYAML leaves `08` bare, a number to many, and knows `no` and `y` as words of YAML 1.1 only.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z_/.-]*")
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}
_OPTIONS = {
    # Other processes write what is listed here.
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 60},
}


class ObjectStat(NamedTuple):
    """What a store knows of an object, named as by `os.stat`: its length in bytes."""

    st_size: int


@dataclass(frozen=True, order=True)
class ObjectPath:
    """The address of an object or a prefix, `s3://` and `key`, which begins with the bucket.

    It has the methods of `pathlib.Path` that readers of a run use. Every one that reaches the store
    raises UmbraError where this does not answer or refuses (the text holds no credential),
    FileNotFoundError where there is no such object, and InvalidRequest without the extra `s3`.

    >>> path = ObjectPath.parse("s3://bucket/runs") / "manifest.json"
    >>> str(path), path.name, str(path.parent)
    ('s3://bucket/runs/manifest.json', 'manifest.json', 's3://bucket/runs')
    """

    key: PurePosixPath

    @classmethod
    def parse(cls, address: str) -> "ObjectPath":
        """Return the path at `s3://bucket/prefix`; the store is not reached."""
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
        """The prefix that contains this."""
        return ObjectPath(self.key.parent)

    def write(self, data: bytes) -> None:
        """Write the whole object; every reader sees the old or the new one."""
        try:
            with self._connect() as store:
                store.pipe_file(str(self.key), data)
        except FileNotFoundError as error:
            raise UmbraError(
                f"{self} cannot be written: there is no bucket {self.key.parts[0]!r}"
            ) from error

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        with self._connect() as store:
            return bytes(store.cat_file(str(self.key)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str) -> io.BytesIO:
        """Return the whole object as a file to read; `mode` is "rb"."""
        # A writer that is killed half way must leave no object.
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self} is written whole, by `write`")
        return io.BytesIO(self.read_bytes())

    def stat(self) -> ObjectStat:
        """Return what the store knows of the object."""
        with self._connect() as store:
            return ObjectStat(int(store.info(str(self.key))["size"]))

    def exists(self) -> bool:
        """Return whether there is an object at or below this path."""
        return self._type() is not None

    def is_file(self) -> bool:
        """Return whether there is an object at this path."""
        return self._type() == "file"

    def is_dir(self) -> bool:
        """Return whether there are objects below this path."""
        return self._type() == "directory"

    def is_symlink(self) -> bool:
        """Return False: a store has no links."""
        return False

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield the objects and prefixes directly below."""
        yield from self.glob("*")

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield the objects and prefixes below that match, in order."""
        with self._connect() as store:
            found = store.glob(f"{self.key}/{pattern}")
        yield from (ObjectPath(PurePosixPath(key)) for key in sorted(found))

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield the objects below, at any depth, whose names match, in order."""
        with self._connect() as store:
            found = store.find(str(self.key))
        keys = map(PurePosixPath, sorted(found))
        yield from (ObjectPath(key) for key in keys if key.match(pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object; a store does not say whether there was one."""
        with self._connect() as store:
            store.rm_file(str(self.key))

    def _type(self) -> str | None:
        try:
            with self._connect() as store:
                return str(store.info(str(self.key))["type"])
        except FileNotFoundError:
            return None

    @contextmanager
    def _connect(self) -> Iterator[Any]:
        store = _store(self)
        try:
            yield store
        except FileNotFoundError:
            raise
        except Exception as error:
            # It must never look like a missing file: a run would start anew beside its checkpoints.
            raise UmbraError(f"{self}: {_reason(error)}") from error


#: A file or a folder of a run, on a local disk or in an object store.
StoragePath = Path | ObjectPath


def parse_address(address: str) -> StoragePath:
    """Return the folder or prefix that a spec's address names; open and create nothing.

    Raises:
        InvalidRequest: it is not an address of a known kind, or holds a credential, which the
            message does not repeat.

    >>> str(parse_address("s3://bucket/runs")), str(parse_address("file:///shared/my%20runs"))
    ('s3://bucket/runs', '/shared/my runs')
    """
    if address.startswith("/") and not address.startswith("//"):
        # A folder, not a URL: its name may hold what a URL escapes.
        return Path(address)
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidRequest(
            "resources.storage holds more than an address: a spec is copied to MLflow, so it "
            "must not hold credentials or options. They come from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or AWS's own files"
        )
    # A glob or a step upwards in a prefix would reach objects of others.
    if _S3.fullmatch(address) and not {".", ".."} & set(parts.path.split("/")):
        return ObjectPath.parse(address)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return Path(unquote(parts.path))
    raise InvalidRequest(
        "resources.storage: expected s3://BUCKET/PREFIX (letters, digits and '._-/'), "
        "file:///FOLDER or an absolute folder that every machine of the cluster reaches, found "
        f"{address!r}"
    )


def require_writable(storage: StoragePath) -> None:
    """Write, read and remove a small file; raise UmbraError, without credentials, if that fails."""
    probe = storage / f".umbra-probe-{secrets.token_hex(4)}"
    try:
        if isinstance(storage, Path) and not storage.is_dir():
            raise UmbraError(
                f"resources.storage is {storage}, which is not a folder here: make it, or mount "
                "it at the same place on every machine"
            )
        write_bytes(probe, b"umbra")
        if probe.read_bytes() != b"umbra":
            raise UmbraError(
                f"resources.storage is {storage}, which returns other bytes than were written"
            )
        probe.unlink()
    except OSError as error:
        raise UmbraError(
            f"resources.storage is {storage}, which cannot be written and read "
            f"({error.strerror or type(error).__name__})"
        ) from error


def relative(path: StoragePath, folder: StoragePath) -> str:
    """Return the name of `path` below `folder`, with / between its parts.

    >>> relative(Path("runs/1/data/a.parquet"), Path("runs/1"))
    'data/a.parquet'
    """
    if isinstance(path, ObjectPath) and isinstance(folder, ObjectPath):
        return path.key.relative_to(folder.key).as_posix()
    return Path(str(path)).relative_to(str(folder)).as_posix()


def is_within(path: StoragePath, folder: StoragePath) -> bool:
    """Return whether `path` and everything below it, links followed, is within `folder`."""
    if isinstance(path, ObjectPath):
        return isinstance(folder, ObjectPath) and path.key.is_relative_to(folder.key)
    if not isinstance(folder, Path):
        return False
    root = folder.resolve()
    return all(entry.resolve().is_relative_to(root) for entry in (path, *path.rglob("*")))


@contextmanager
def local_copy(path: StoragePath) -> Iterator[Path]:
    """Yield a local path with the content of `path`, for libraries that read local files only."""
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


def write_bytes(path: StoragePath, data: bytes) -> None:
    """Write `data` to `path` atomically and durably, replacing what is there.

    Raises UmbraError where it cannot be written; `path` is then as it was.
    """
    if isinstance(path, ObjectPath):
        path.write(data)
    else:
        durable.write_file(path, data)


def write_json(path: StoragePath, record: Mapping[str, Any]) -> None:
    """Write `record` to `path` as `json_bytes`; see `write_bytes`."""
    write_bytes(path, json_bytes(record))


def json_bytes(record: Mapping[str, Any]) -> bytes:
    r"""Serialise to the one form used on disk: sorted keys, one field a line, UTF-8, no NaN.

    Raises:
        ValueError: a number is not finite (it would not be JSON).

    >>> json_bytes({"rows": 2, "classes": ["é"]}).decode()
    '{\n "classes": [\n  "é"\n ],\n "rows": 2\n}\n'
    """
    text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def yaml_text(record: Mapping[str, Any]) -> str:
    r"""Serialise to YAML that readers of YAML 1.1 and of 1.2 read back as it is.

    >>> print(yaml_text({"size": 28, "classes": ["cat", "08", "no"]}), end="")
    size: 28
    classes:
    - cat
    - "08"
    - "no"
    """
    import yaml

    class Quoting(yaml.SafeDumper):
        """Quote every text that some reader could take for a number, a date or a truth value."""

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        plain = _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')

    Quoting.add_representer(str, represent)
    return str(
        yaml.dump(dict(record), Dumper=Quoting, sort_keys=False, allow_unicode=True, width=100)
    )


def write_folder(path: StoragePath, files: Mapping[str, bytes], seal: str) -> None:
    """Write a folder of `files`, replacing one that is there; `seal` is the name of one of them.

    Raises UmbraError where it cannot be written. The old folder is then there, or none.
    """
    if isinstance(path, ObjectPath):
        # A store cannot rename: the old folder is removed before the new one is written.
        remove_folder(path, seal)
        # The seal last.
        for name in sorted(files, key=lambda name: name == seal):
            (path / name).write(files[name])
        return
    with durable.new_folder(path, replace=True) as part:
        for name, data in files.items():
            (part / name).write_bytes(data)


def remove_folder(path: StoragePath, seal: str) -> None:
    """Remove a folder of `write_folder`, its seal first."""
    if isinstance(path, ObjectPath):
        for file in ((path / seal), *path.rglob("*")):
            file.unlink()
    else:
        shutil.rmtree(path)


def is_half_written(path: StoragePath, seal: str) -> bool:
    """Return whether a folder of `write_folder` was left unsealed by a writer that was killed."""
    return isinstance(path, ObjectPath) and not (path / seal).is_file()


def remove_leftovers(folder: StoragePath) -> None:
    """Remove the temporary files that killed writers left in a local `folder`."""
    # A store keeps none: what it received of an unfinished put is no object.
    if isinstance(folder, Path):
        durable.remove_leftovers(folder)


def _store(path: ObjectPath) -> Any:
    """Return this process's and thread's fsspec file system for `path`."""
    try:
        import s3fs
    except ImportError:
        raise InvalidRequest(
            f"{path} is in an object store, whose library is not installed: "
            "pip install 'umbra-synth[s3]'"
        ) from None
    return s3fs.S3FileSystem(**_OPTIONS)


def _reason(error: Exception) -> str:
    """Describe what is wrong with the store without the library's text, which may name a key."""
    kind = type(error).__name__
    # S3's own word, such as NoSuchBucket or SlowDown.
    response = getattr(error.__cause__ or error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    if isinstance(code, str) and code.isalnum():
        kind = f"{kind}, {code}"
    if isinstance(error, PermissionError) or type(error).__name__ in _WITHOUT_CREDENTIALS:
        return f"the object store refused access ({kind}). {_CREDENTIALS}"
    return (
        f"the object store did not answer or refused ({kind}). Check the address, "
        "AWS_ENDPOINT_URL and that the store runs; nothing was left half written"
    )
