import errno
import os
import tempfile
from contextlib import contextmanager

import pytest

from pipeline.cluster.calls import disk_write_error
from privacy.errors import UmbraError


def test_a_folder_with_room_is_fine_and_nothing_is_left_in_it(tmp_path):
    assert disk_write_error(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_reported(tmp_path):
    tmp_path.chmod(0o500)
    assert str(tmp_path) in str(disk_write_error(tmp_path))


def test_the_temporary_folder_is_checked_too(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    monkeypatch.setattr(tempfile, "tempdir", str(gone))
    assert f"{gone} (No such file or directory)" in str(disk_write_error(tmp_path))


def test_a_missing_temporary_folder_is_reported(tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert "No usable temporary directory" in str(disk_write_error(tmp_path))


@contextmanager
def full_disk():
    """Let no file of this process grow: Python raises the errors of a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:  # before pytest itself writes, to a file it may be
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported(tmp_path):
    with full_disk():
        error = disk_write_error(tmp_path)
    assert isinstance(error, UmbraError)
    assert f"nothing can be written in {tmp_path} (File too large)" in str(error)
    assert "umbra resume" in str(error)
