import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable
from privacy.keys import key_id, load_or_create_key


def test_makes_a_key_once_for_the_owner_only(tmp_path):
    path = tmp_path / "home" / "key"
    key = load_or_create_key(path)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_key(str(path)) == key
    assert [p.name for p in path.parent.iterdir()] == ["key"]
    assert load_or_create_key(tmp_path / "other") != key


def test_a_wide_umask_makes_no_wider_key(tmp_path):
    old = os.umask(0)
    try:
        load_or_create_key(tmp_path / "key")
    finally:
        os.umask(old)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_refuses_a_key_that_others_may_use(tmp_path, mode):
    path = tmp_path / "key"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(InvalidRequest, match=rf"mode {mode:04o}.*chmod 600"):
        load_or_create_key(path)


@pytest.mark.parametrize("length", [0, 31, 33, 1000])
def test_refuses_a_damaged_key_and_keeps_it(tmp_path, length):
    path = tmp_path / "key"
    path.write_bytes(b"k" * length)
    path.chmod(0o600)
    with pytest.raises(IntegrityBroken, match="32 bytes"):
        load_or_create_key(path)
    assert path.read_bytes() == b"k" * length


def test_says_what_the_system_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnavailable, match="cannot be read or made"):
        load_or_create_key(tmp_path / "file" / "key")
    with pytest.raises(LedgerUnavailable, match="cannot be read or made"):
        load_or_create_key(tmp_path)
    (tmp_path / "loose").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LedgerUnavailable, match="cannot be read or made"):
        load_or_create_key(tmp_path / "loose")


def test_all_that_race_get_the_same_key(tmp_path):
    for i in range(20):
        path = tmp_path / f"key-{i}"
        with ThreadPoolExecutor(16) as pool:
            keys = set(pool.map(lambda _, p=path: load_or_create_key(p), range(16)))
        assert keys == {path.read_bytes()}
    assert len(list(tmp_path.iterdir())) == 20


def test_the_id_names_the_key_and_holds_none_of_it():
    key = bytes(range(32))
    assert key_id(key) == key_id(bytes(range(32)))
    assert key_id(key) != key_id(bytes(32))
    assert len(key_id(key)) == 16
    assert key.hex()[:8] not in key_id(key)


@pytest.mark.parametrize("key", [b"", bytes(31), "x" * 32, None, bytearray(32)])
def test_other_keys_are_refused_without_telling_them(key):
    with pytest.raises(InvalidRequest) as caught:
        key_id(key)
    assert "xx" not in str(caught.value)
