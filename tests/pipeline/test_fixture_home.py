"""A home that commit 432c19d wrote is opened, audited, exported and resumed by the command line.

No module but the command line's own is named here, so that a move of the others leaves this test
as it is. How the home was made is in `tests/fixtures`.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.cli.main import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
FACTS = json.loads((FIXTURES / "home.json").read_text(encoding="utf-8"))
PUBLIC_KEY = FACTS["ledger"]["public_key"]
RUNS = {row["run_id"].partition("-")[0]: row["run_id"] for row in FACTS["runs"]}
FORMATS = ["parquet", "images", "webdataset", "npz"]
PROSE = {"README.md", "manifest.json", "privacy.json"}  # the files of an export that hold no data
PATIENCE = 300  # seconds, for a machine that is busy with other things


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """The unpacked fixture: `home/` and `exports/`, for tests that only read."""
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(FIXTURES / "home.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def unpacked(kept, tmp_path, monkeypatch):
    """A copy of it, whose home UMBRA_HOME names."""
    for name in ("UMBRA_LEDGER_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "UMBRA_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(kept, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setenv("UMBRA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UMBRA_AUTHOR", "fixture <fixture@example.org>")
    return tmp_path


@pytest.fixture
def umbra(unpacked, capsys):
    """Run a command in the home, require its exit code and return its standard output."""

    def run(*arguments, code=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (ended.value.code, "Traceback" in out + err) == (code, False), out + err
        return out + err if code else out

    return run


def assert_holds(found, expected, where=""):
    """Require everything that was said, in place; what is said beside it may be new."""
    if isinstance(expected, dict):
        missing = set(expected) - set(found)
        assert not missing, (where, missing)
        for key, value in expected.items():
            assert_holds(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_holds(one, other, f"{where}[{index}]")
    else:
        assert found == expected, where


def data_of(folder):
    """Return the SHA-256 of every file of an export that holds data."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in PROSE
    }


def same_versions():
    """Return whether PNG and npz are written here by the libraries that wrote the fixture."""
    return FACTS["versions"] == {
        name: importlib.metadata.version(name) for name in FACTS["versions"]
    }


class TestOpen:
    def test_the_runs_and_their_status(self, umbra):
        assert set(RUNS) == {"finished", "void", "failed", "resumable"}
        assert_holds(json.loads(umbra("runs", "--json")), FACTS["runs"])
        standing = {row["run_id"]: row["status"] for row in FACTS["runs"]}
        assert [standing[RUNS[name]] for name in ("finished", "void", "failed", "resumable")] == [
            "done",
            "done",
            "failed",
            "cancelled",
        ]

    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_a_run_by_the_beginning_of_its_id(self, umbra, name):
        expected = dict(FACTS["status"][RUNS[name]])
        assert expected.pop("mlflow_stage_run_ids") == {}  # written by that version, read by none
        expected.pop("advice")  # a sentence for a person, whose words may improve
        found = json.loads(umbra("status", name, "--json"))
        assert_holds(found, expected)
        assert f"umbra resume {RUNS[name]}" in found["advice"] or found["status"] == "done"
        assert umbra("status", name).startswith(f"{RUNS[name]}: ")

    def test_the_budgets(self, umbra):
        budgets = json.loads(umbra("budget", "show", "--json"))
        assert_holds(budgets, FACTS["budget"])
        assert [budget["open_reservations"] for budget in budgets] == [1, 1]
        shown = umbra("budget", "show")
        assert "digits" in shown and "blots" in shown

    @pytest.mark.parametrize("dataset", ["digits", "blots"])
    def test_the_history(self, umbra, dataset):
        rows = json.loads(umbra("budget", "history", dataset, "--json"))
        assert_holds(rows, FACTS["history"][dataset])
        if dataset == "digits":
            assert {"declare", "partition", "reserve", "attempt", "charge", "settle", "export"} <= {
                row["kind"] for row in rows
            }
            signed = [row["signature"] is not None for row in rows]
            assert signed == sorted(signed) and set(signed) == {False, True}
        assert umbra("budget", "history", dataset)

    def test_the_head(self, umbra):
        assert_holds(json.loads(umbra("ledger", "head", "--json")), FACTS["ledger"])


class TestAudit:
    def test_the_whole_ledger(self, umbra):
        said = json.loads(umbra("audit", "--public-key", PUBLIC_KEY, "--json"))
        expected = FACTS["audit"]
        assert said["ok"] is True
        assert said["files"] == said["ledger"]["findings"] == []
        assert said["signed_by"] == PUBLIC_KEY
        for name in ("ledger_id", "head", "rows"):
            assert_holds(said["ledger"][name], expected["ledger"][name])
        for one, other in zip(
            said["ledger"]["datasets"], expected["ledger"]["datasets"], strict=True
        ):
            assert one["name"] == other["name"]
            for total in ("spent", "committed"):
                assert one[total]["rdp"] == other[total]["rdp"]
                assert one[total] == pytest.approx(other[total], rel=0.02)
        assert "passed" in umbra("audit")

    def test_with_another_public_key_it_is_broken(self, umbra):
        assert "BROKEN" in umbra("audit", "--public-key", "ab" * 32, code=4)

    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_a_run(self, umbra, name):
        said = json.loads(umbra("audit", name, "--json"))
        assert said["ok"] is True

    @pytest.mark.parametrize("form", FORMATS)
    def test_an_export(self, umbra, unpacked, form):
        said = json.loads(umbra("audit", unpacked / "exports" / form, "--json"))
        assert said["ok"] is True
        assert said["files"] == []

    def test_a_changed_export_is_broken(self, umbra, unpacked):
        shard = next((unpacked / "exports" / "parquet" / "data").iterdir())
        shard.write_bytes(shard.read_bytes().replace(b"PNG", b"GNP", 1))
        assert "BROKEN: changed" in umbra("audit", unpacked / "exports" / "parquet", code=4)


class TestExport:
    @pytest.mark.parametrize("form", FORMATS)
    def test_the_same_data_come_out_again(self, umbra, unpacked, form):
        kept, made = unpacked / "exports" / form, unpacked / "again"
        umbra("export", "finished", made, "--format", form)
        if form == "parquet" or same_versions():
            assert data_of(made) == data_of(kept)
            shards, expected = (
                json.loads((folder / "manifest.json").read_text())["shards"]
                for folder in (made, kept)
            )
            assert shards == expected
        else:
            assert data_of(made).keys() == data_of(kept).keys()
        said, before = (
            json.loads((folder / "privacy.json").read_text()) for folder in (made, kept)
        )
        changing = {"manifest_sha256", "head_hash"}
        assert_holds(said, {k: v for k, v in before.items() if k not in changing})
        assert umbra("audit", made)

    def test_a_void_run_is_refused_without_the_flag(self, umbra, unpacked):
        assert "void" in umbra("export", "void", unpacked / "void", code=2)
        assert not (unpacked / "void").exists()
        umbra("export", "void", unpacked / "void", "--allow-void")
        assert "void" in umbra("audit", unpacked / "void")

    @pytest.mark.parametrize("name", ["failed", "resumable"])
    def test_a_run_without_images_is_refused(self, umbra, unpacked, name):
        assert "no finished images" in umbra("export", name, unpacked / "none", code=2)


def test_what_the_failed_run_never_charged_is_given_back(umbra):
    said = json.loads(umbra("cancel", "--give-up", "failed", "--json"))
    assert said["refunded"] == {"dp-sgd": 10}
    budgets = {budget["name"]: budget for budget in json.loads(umbra("budget", "show", "--json"))}
    assert budgets["blots"]["open_reservations"] == 0
    assert budgets["blots"]["committed"] == 0.0
    assert umbra("audit")


def test_what_its_data_set_is_is_asked_before_the_next_run(umbra, unpacked):
    spec = unpacked / "home" / "runs" / RUNS["finished"] / "spec.yaml"
    rows = json.loads(umbra("ledger", "head", "--json"))["head"]
    refused = umbra("submit", spec, code=3)
    command = re.search("umbra (budget declare digits .* --private)", refused)[1]
    assert "--unit image --records-per-unit 1 --private" in command
    assert json.loads(umbra("ledger", "head", "--json"))["head"] == rows
    assert "--private, --public" not in command
    partial = ("budget", "declare", "digits", "--epsilon", 20, "--delta", 1e-4, "--unit", "image")
    assert "--public, --records-per-unit" in umbra(*partial, code=2)
    (said,) = json.loads(umbra(*command.replace("--private", "--public").split(), "--json"))
    facts = {"unit": "image", "records_per_unit": 1, "public": True, "public_holdout": True}
    assert said["facts"] == facts
    assert json.loads(umbra("budget", "history", "digits", "--json"))[-1]["kind"] == "facts"
    assert umbra("audit")


@pytest.mark.slow
def test_the_interrupted_run_is_resumed_to_its_end(umbra, unpacked):
    charged = [row["body"] for row in FACTS["history"]["digits"] if row["kind"] == "charge"][-1]
    assert 0 < charged["charged"]["dp-sgd"] < 100
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "resume", "resumable", "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    state = json.loads(umbra("status", "resumable", "--json"))
    assert (state["status"], state["attempt"]) == ("done", 2)
    rows = json.loads(umbra("budget", "history", "digits", "--json"))
    known = FACTS["history"]["digits"]
    assert_holds(rows[: len(known)], known)
    # It goes on where the checkpoint is, with steps that were never charged, and no more than 100.
    own = [row for row in rows if row["reservation"] == state["reservation_id"]]
    charges = [row["body"] for row in own if row["kind"] == "charge"]
    assert sum(body["steps"] for body in charges) == charges[-1]["charged"]["dp-sgd"] == 100
    assert {body["attempt"] for body in charges} == {1, 2}
    assert all(row["signature"] for row in own)
    umbra("export", "resumable", unpacked / "resumed")
    assert json.loads((unpacked / "resumed" / "manifest.json").read_text())["rows"] == 40
    assert umbra("audit", unpacked / "resumed")
    assert umbra("audit")
