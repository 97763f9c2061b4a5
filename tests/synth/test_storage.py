"""Files and checkpoints in an object store, against a real S3 server on loopback."""

import itertools
import multiprocessing
import os
import pickle
import random
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch

from privacy.errors import InvalidRequest, UmbraError
from synth import storage
from synth.checkpoint import Checkpoint, keep_last, load, newest, save
from synth.storage import ObjectPath, is_within, local_copy, relative


@pytest.fixture
def store(s3):
    return ObjectPath.parse("s3://umbra/runs/one")


@pytest.fixture(params=["folder", "store"])
def place(request, tmp_path):
    """A place of either kind."""
    if request.param == "folder":
        return tmp_path / "place"
    request.getfixturevalue("s3")
    return ObjectPath.parse("s3://umbra/runs/one")


def _checkpoint(step, attempt=1):
    weight = torch.full((3,), float(step))
    return Checkpoint(step, attempt, "private", {"w": weight}, {"w": weight + 1}, {"lr": 0.1}, "h")


def test_a_store_reads_like_a_folder(tmp_path, store):
    for place in (tmp_path, store):
        storage.write_bytes(place / "data" / "a.bin", b"one")
        storage.write_bytes(place / "data" / "a.bin", b"three")
        storage.write_json(place / "b.json", {"x": 1})
        file = place / "data" / "a.bin"
        assert file.read_bytes() == b"three" and file.stat().st_size == 5
        assert (place / "b.json").read_text() == '{\n "x": 1\n}\n'
        with file.open("rb") as opened:
            assert opened.read(2) == b"th"
        assert (file.exists(), file.is_file(), file.is_dir()) == (True, True, False)
        assert ((place / "data").is_file(), (place / "data").is_dir()) == (False, True)
        assert not (place / "absent").exists() and not (place / "data" / "a").exists()
        assert [path.name for path in (place / "data").glob("*.bin")] == ["a.bin"]
        assert sorted(path.name for path in place.iterdir()) == ["b.json", "data"]
        names = {relative(path, place) for path in place.rglob("*") if path.is_file()}
        assert names == {"data/a.bin", "b.json"}
        assert is_within(file, place) and not is_within(place, place / "data")
        with local_copy(place / "data") as copy:
            assert isinstance(copy, Path) and (copy / "a.bin").read_bytes() == b"three"
        with pytest.raises(FileNotFoundError):
            (place / "absent").read_bytes()
        file.unlink()
        assert not file.exists()


def test_a_path_travels_to_other_processes_without_a_credential(store, monkeypatch):
    store.write(b"x")
    data = pickle.dumps(store)
    assert b"no-secret" not in data and pickle.loads(data).read_bytes() == b"x"


def test_what_others_write_is_seen_at_once(store, s3):
    (store / "a").write(b"x")
    assert [path.name for path in store.glob("*")] == ["a"] and not (store / "b").exists()
    kind = {"Content-Type": "application/octet-stream"}
    urlopen(Request(f"{s3}/umbra/runs/one/b", b"xy", kind, method="PUT"))
    assert [path.name for path in store.glob("*")] == ["a", "b"]
    assert (store / "b").is_file() and (store / "b").read_bytes() == b"xy"


def test_an_object_is_written_whole_or_not(store):
    with pytest.raises(OSError):
        store.open("wb")
    sizes, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            sizes.add(len(store.read_bytes()))

    store.write(b"x" * 1_000)
    reader = threading.Thread(target=read)
    reader.start()
    for size in (2_000_000, 1_000, 3_000_000):
        store.write(b"x" * size)
    stop.set()
    reader.join()
    assert sizes <= {1_000, 2_000_000, 3_000_000}


_WRITER = """
import itertools, os
from synth.storage import write_folder
os.environ.update(environment)
for number in itertools.count(first):
    data = str(number).encode() * 20000
    files = {"seal": data, "a": data, "b": data, "c": data}
    write_folder(place / f"step-{number % 7:06d}", files, seal="seal")
    written.send(number)
"""


@pytest.fixture(scope="module")
def forks():
    """A process that has imported all that a writer needs, so that a writer starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["s3fs", "synth.storage"])
    return context


@pytest.mark.slow
def test_a_folder_whose_writer_is_killed_is_whole_or_does_not_exist(place, forks):
    dice, number, unsealed = random.Random(3), 0, 0
    for _ in range(4):
        reader, written = forks.Pipe(duplex=False)
        settings = {"place": place, "first": number, "environment": dict(os.environ)}
        writer = forks.Process(target=exec, args=(_WRITER, settings | {"written": written}))
        writer.start()
        written.close()
        number = reader.recv()
        time.sleep(dice.uniform(0.01, 0.08))
        writer.kill()
        writer.join()
        with suppress(EOFError):
            while True:
                number = reader.recv()
        number += 1
        for folder in place.glob("step-*"):
            if storage.is_half_written(folder, "seal"):
                unsealed += 1
                continue
            parts = {(folder / name).read_bytes() for name in ("seal", "a", "b", "c")}
            assert len(parts) == 1
    assert unsealed <= 4
    storage.remove_leftovers(place)


@pytest.mark.parametrize("puts", range(5))
def test_a_checkpoint_cut_off_after_any_put_is_none(store, monkeypatch, puts):
    """Three files and, last, the record: with fewer than four puts there is no checkpoint."""
    save(store, _checkpoint(2))
    allowed, put = itertools.count(), ObjectPath.write

    class Killed(BaseException):
        pass

    def cut(path, data):
        if next(allowed) >= puts:
            raise Killed
        put(path, data)

    with monkeypatch.context() as patch, pytest.raises(Killed) if puts < 4 else nullcontext():
        patch.setattr(ObjectPath, "write", cut)
        save(store, _checkpoint(4))
    # The environment of the server goes with undo; the connection is open.
    found = newest(store)
    assert found.skipped == () and found.checkpoint.step == (4 if puts == 4 else 2)
    keep_last(store, 2)
    kept = {path.name for path in store.iterdir()}
    assert kept == ({"step-000002", "step-000004"} if puts == 4 else {"step-000002"})


def test_checkpoints_come_back_and_the_newest_sound_one_is_found(place):
    for step in (1, 2, 3):
        save(place, _checkpoint(step))
    save(place, _checkpoint(3, attempt=2))
    assert load(place / "step-000003").attempt == 2
    storage.write_bytes(place / "step-000003" / "ema.safetensors", b"damaged")
    found = newest(place)
    assert found.checkpoint.step == 2 and "step-000003" in found.skipped[0]
    assert torch.equal(found.checkpoint.model["w"], torch.full((3,), 2.0))
    keep_last(place, 1)
    assert sorted(path.name for path in place.iterdir()) == ["step-000002", "step-000003"]
    assert newest(place / "absent").checkpoint is None


def test_a_store_that_does_not_answer_is_not_an_empty_one(store, monkeypatch):
    save(store, _checkpoint(2))
    unreached = [
        store.exists,
        store.is_file,
        store.read_bytes,
        store.stat,
        lambda: list(store.glob("*")),
        lambda: store.write(b"x"),
        lambda: newest(store),
        lambda: keep_last(store, 1),
    ]
    monkeypatch.setattr("synth.storage._store", _unreachable)
    for ask in unreached:
        with pytest.raises(UmbraError, match=r"s3://umbra/runs/one.*did not answer") as caught:
            ask()
        assert "127.0.0.1" not in str(caught.value)


class _Unreachable:
    def __getattr__(self, name):
        def fail(*_, **__):
            raise ConnectionError("http://127.0.0.1:9 refused AKIA-SECRET")

        return fail


def _unreachable(path):
    return _Unreachable()


def test_what_is_wrong_with_a_store_is_said_in_our_own_words(s3, monkeypatch):
    with pytest.raises(UmbraError, match="there is no bucket 'elsewhere'"):
        ObjectPath.parse("s3://elsewhere/x").write(b"x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InvalidRequest, match=r"umbra-synth\[s3\]"):
        ObjectPath.parse("s3://umbra/x").exists()


def test_json_is_canonical_and_refuses_nan():
    assert storage.json_bytes({"b": 1, "a": "é"}) == '{\n "a": "é",\n "b": 1\n}\n'.encode()
    with pytest.raises(ValueError):
        storage.json_bytes({"a": float("nan")})
