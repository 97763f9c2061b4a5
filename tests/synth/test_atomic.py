import errno
import os
from pathlib import Path

import pytest

from privacy.errors import InvalidRequest, UmbraError
from synth.storage import atomic


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def full_disk(monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_bytes_arrive_and_replace(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    atomic.write_bytes(path, b"one")
    atomic.write_bytes(path, b"two")
    assert contents(tmp_path) == {"deep/a.bin": b"two"}


def test_nothing_is_seen_before_the_block_ends(tmp_path):
    path = tmp_path / "a.bin"
    with atomic.new_file(path) as file:
        file.write(b"x" * 100_000)
        assert not path.exists()
        assert all(atomic.is_leftover(other) for other in tmp_path.iterdir())
    assert path.read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    atomic.write_bytes(path, b"old")
    with pytest.raises(error), atomic.new_file(path) as file:
        file.write(b"new")
        raise error
    assert contents(tmp_path) == {"a.bin": b"old"}


def test_a_full_disk_is_explained_and_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(UmbraError, match=r"a\.bin: the disk is full: free some space"):
        atomic.write_bytes(path, b"new")
    assert contents(tmp_path) == {"a.bin": b"old"}


def test_a_full_disk_while_filling_a_folder_is_explained(tmp_path):
    target = tmp_path / "export"
    with pytest.raises(UmbraError, match="the disk is full"), atomic.new_folder(target) as folder:
        (folder / "a").write_bytes(b"x")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_other_operating_system_errors_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic.new_file(tmp_path / "a") as file:
        file.write((tmp_path / "absent").read_bytes())


def test_content_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    events = []
    sync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (
            events.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.exists())),
            sync(descriptor),
        ),
    )
    atomic.write_bytes(path, b"x")
    (first, named_before), (second, named_after) = events
    assert ".part" in first
    assert not named_before
    assert (second, named_after) == (str(tmp_path), True)


@pytest.mark.parametrize("many", [1, 500])
def test_a_folder_appears_whole(tmp_path, many, monkeypatch):
    monkeypatch.setattr(atomic, "_MANY", many)
    target = tmp_path / "export"
    target.mkdir()  # an empty folder is fine
    with atomic.new_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"x")
        (folder / "b").write_bytes(b"y")
        assert contents(target) == {}
    assert contents(tmp_path) == {"export/sub/a": b"x", "export/b": b"y"}


def test_an_occupied_folder_is_refused_and_untouched(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "mine").write_bytes(b"x")
    with pytest.raises(InvalidRequest, match="not empty"), atomic.new_folder(target):
        pytest.fail("must not be filled")
    (tmp_path / "file").write_bytes(b"y")
    with pytest.raises(InvalidRequest, match="not a folder"), atomic.new_folder(tmp_path / "file"):
        pytest.fail("must not be filled")
    assert contents(tmp_path) == {"export/mine": b"x", "file": b"y"}


def test_a_folder_that_another_writer_filled_meanwhile_is_refused(tmp_path):
    target = tmp_path / "export"
    with pytest.raises(InvalidRequest, match="not empty"), atomic.new_folder(target) as folder:
        (folder / "a").write_bytes(b"late")
        target.mkdir()
        (target / "a").write_bytes(b"first")
    assert contents(tmp_path) == {"export/a": b"first"}


def test_replace_swaps_whole_folders_and_keeps_the_old_one_on_failure(tmp_path):
    target = tmp_path / "step"
    target.mkdir()
    (target / "old").write_bytes(b"x")
    with pytest.raises(ValueError), atomic.new_folder(target, replace=True):
        raise ValueError
    assert contents(tmp_path) == {"step/old": b"x"}
    with atomic.new_folder(target, replace=True) as folder:
        (folder / "new").write_bytes(b"y")
    assert contents(tmp_path) == {"step/new": b"y"}


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.bin.0123456789ab.part").write_bytes(b"x")
    (tmp_path / ".b.0123456789ab.part").mkdir()
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "a.part").write_bytes(b"x")
    atomic.remove_leftovers(tmp_path)
    atomic.remove_leftovers(tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.part"]


def test_json_is_canonical_and_refuses_nan():
    assert atomic.json_bytes({"b": 1, "a": "é"}) == '{\n "a": "é",\n "b": 1\n}\n'.encode()
    with pytest.raises(ValueError):
        atomic.json_bytes({"a": float("nan")})
