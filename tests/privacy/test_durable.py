import errno
import os
from pathlib import Path

import pytest

from privacy import durable
from privacy.errors import InvalidRequest, UmbraError


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
    durable.write_file(path, b"one")
    durable.write_file(path, b"two")
    assert contents(tmp_path) == {"deep/a.bin": b"two"}


def test_nothing_is_seen_before_the_block_ends(tmp_path):
    path = tmp_path / "a.bin"
    with durable.new_file(path) as file:
        file.write(b"x" * 100_000)
        assert not path.exists()
        assert all(durable.is_leftover(other.name) for other in tmp_path.iterdir())
    assert path.read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    durable.write_file(path, b"old")
    with pytest.raises(error), durable.new_file(path) as file:
        file.write(b"new")
        raise error
    assert contents(tmp_path) == {"a.bin": b"old"}


def test_a_full_disk_is_explained_and_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(UmbraError, match=r"a\.bin: the disk is full: free some space"):
        durable.write_file(path, b"new")
    assert contents(tmp_path) == {"a.bin": b"old"}


def test_a_full_disk_while_filling_a_folder_is_explained(tmp_path):
    target = tmp_path / "export"
    with pytest.raises(UmbraError, match="the disk is full"), durable.new_folder(target) as folder:
        (folder / "a").write_bytes(b"x")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_other_operating_system_errors_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), durable.new_file(tmp_path / "a") as file:
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
    durable.write_file(path, b"x")
    (first, named_before), (second, named_after) = events
    assert ".part" in first
    assert not named_before
    assert (second, named_after) == (str(tmp_path), True)


@pytest.mark.parametrize("many", [1, 500])
def test_a_folder_appears_whole(tmp_path, many, monkeypatch):
    monkeypatch.setattr(durable, "_MANY_FILES", many)
    target = tmp_path / "export"
    target.mkdir()  # an empty folder is fine
    with durable.new_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"x")
        (folder / "b").write_bytes(b"y")
        assert contents(target) == {}
    assert contents(tmp_path) == {"export/sub/a": b"x", "export/b": b"y"}


def test_an_occupied_folder_is_refused_and_untouched(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "mine").write_bytes(b"x")
    with pytest.raises(InvalidRequest, match="not empty"), durable.new_folder(target):
        pytest.fail("must not be filled")
    (tmp_path / "file").write_bytes(b"y")
    with pytest.raises(InvalidRequest, match="not a folder"), durable.new_folder(tmp_path / "file"):
        pytest.fail("must not be filled")
    assert contents(tmp_path) == {"export/mine": b"x", "file": b"y"}


def test_a_folder_that_another_writer_filled_meanwhile_is_refused(tmp_path):
    target = tmp_path / "export"
    with pytest.raises(InvalidRequest, match="not empty"), durable.new_folder(target) as folder:
        (folder / "a").write_bytes(b"late")
        target.mkdir()
        (target / "a").write_bytes(b"first")
    assert contents(tmp_path) == {"export/a": b"first"}


def test_replace_swaps_whole_folders_and_keeps_the_old_one_on_failure(tmp_path):
    target = tmp_path / "step"
    target.mkdir()
    (target / "old").write_bytes(b"x")
    with pytest.raises(ValueError), durable.new_folder(target, replace=True):
        raise ValueError
    assert contents(tmp_path) == {"step/old": b"x"}
    with durable.new_folder(target, replace=True) as folder:
        (folder / "new").write_bytes(b"y")
    assert contents(tmp_path) == {"step/new": b"y"}


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.bin.0123456789ab.part").write_bytes(b"x")
    (tmp_path / ".b.0123456789ab.part").mkdir()
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "a.part").write_bytes(b"x")
    durable.remove_leftovers(tmp_path)
    durable.remove_leftovers(tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.part"]


def test_a_created_file_is_never_replaced(tmp_path):
    path = tmp_path / "deep" / "key"
    assert durable.create_file(path, b"first")
    assert not durable.create_file(path, b"second")
    assert contents(tmp_path) == {"deep/key": b"first"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_no_created_file(tmp_path, full_disk):
    with pytest.raises(UmbraError, match="the disk is full"):
        durable.create_file(tmp_path / "key", b"k")
    assert list(tmp_path.iterdir()) == []


def test_a_write_without_sync_is_still_atomic(tmp_path, full_disk):
    durable.write_file(tmp_path / "head", b"one", sync=False)
    durable.write_file(tmp_path / "head", b"two", sync=False)
    assert contents(tmp_path) == {"head": b"two"}


def test_appended_lines_are_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    durable.append_line(tmp_path / "heads", "1:ab")
    durable.append_line(tmp_path / "heads", "2:cd")
    assert contents(tmp_path) == {"heads": b"1:ab\n2:cd\n"}
    assert len(synced) == 2
