import stat
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.home import Home, without_password
from pipeline.runs.ledger_access import open_budget
from pipeline.spec import parse_spec
from privacy.errors import InvalidRequest, UmbraError
from tests.builders import SMALL_SPEC


@pytest.fixture
def spec():
    return parse_spec(SMALL_SPEC)


@pytest.fixture
def home(tmp_path):
    return Home.locate({"UMBRA_HOME": str(tmp_path / "home")})


def test_everything_is_in_one_folder_by_default(home, tmp_path):
    root = tmp_path / "home"
    assert home.path == root
    assert home.ledger_url == f"sqlite:///{root}/ledger.db"
    assert home.mlflow_uri == f"sqlite:///{root}/mlflow.db"
    assert home.artifacts == root / "mlartifacts"
    assert home.key_path == root / "key"
    assert home.runs_path == root / "runs"


def test_a_tracking_server_keeps_its_artifacts_itself(tmp_path):
    environment = {"UMBRA_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://10.0.0.9:5000"}
    assert Home.locate(environment).artifacts is None


@pytest.mark.parametrize("env", [{}, {"UMBRA_HOME": ""}])
def test_by_default_it_is_in_the_users_home(env, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert Home.locate(env).path == Path("/somewhere/.umbra")


def test_relative_and_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.chdir(tmp_path)
    assert Home.locate({"UMBRA_HOME": "~/u"}).path == Path("/somewhere/u")
    assert Home.locate({"UMBRA_HOME": "u"}).path == tmp_path / "u"


@pytest.mark.parametrize("name", ["feature%2Fx", "my%20home", "pct%41x", "q?x=1", "a#b", "ü b"])
def test_no_name_of_a_folder_is_taken_for_a_part_of_an_url(name, tmp_path):
    home = Home.locate({"UMBRA_HOME": str(tmp_path / name)}).ensure()
    open_budget(home).declare("blots", 1.0, 1e-5)
    assert (home.path / "ledger.db").exists()
    # What opens a database reads its URL with this.
    assert sa.make_url(home.mlflow_uri).database == str(home.path / "mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_without_a_known_home_folder_one_is_asked_for(monkeypatch):
    def unknown(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(UmbraError, match="set UMBRA_HOME"):
        Home.locate({})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@db:5432/m?x=1", "postgresql://db:5432/m?x=1"),
        ("postgresql://u:p@ss/w@db/m refused u", "postgresql://db/m refused u"),
        (
            "failed: http://token@h/x?api_key=word&y=2 (no)",
            "failed: http://h/x?api_key=***&y=2 (no)",
        ),
        ("sqlite:////a@b/c.db", "sqlite:////a@b/c.db"),
        ("mail ada@example.org", "mail ada@example.org"),
    ],
)
def test_a_text_is_shown_without_the_passwords_in_it(text, shown):
    assert without_password(text) == shown


def test_servers_may_replace_files():
    env = {
        "UMBRA_HOME": "/u",
        "UMBRA_LEDGER_URL": "postgresql://me:secret@host/db",
        "MLFLOW_TRACKING_URI": "https://me:secret@host",
    }
    home = Home.locate(env)
    assert home.ledger_url == env["UMBRA_LEDGER_URL"]
    assert home.mlflow_uri == env["MLFLOW_TRACKING_URI"]
    assert "secret" not in repr(home)


def test_looking_creates_nothing(home):
    assert home.runs() == ()
    with pytest.raises(InvalidRequest):
        home.run("x")
    assert not home.path.exists()


def test_only_its_owner_may_open_it(home):
    assert home.ensure() is home
    home.ensure()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert [path.name for path in home.path.iterdir()] == ["runs"]


def test_not_writable(tmp_path, spec):
    (tmp_path / "file").write_text("")
    home = Home.locate({"UMBRA_HOME": str(tmp_path / "file" / "home")})
    with pytest.raises(UmbraError, match=r"UMBRA_HOME is .*file/home, which cannot") as caught:
        home.new_run(spec)
    assert caught.value.exit_code == 1


def test_a_full_or_read_only_disk(home, monkeypatch):
    def refuse(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UmbraError, match="No space left"):
        home.ensure()


def test_runs_are_listed_by_time(home, spec):
    for name in ("b-20260101-000000-aaaaaa", "a-20260102-000000-000000", "c-20250101-000000-f"):
        (home.runs_path / name).mkdir(parents=True)
    (home.runs_path / "a stray file").write_text("")
    new = home.new_run(spec)
    assert [run.run_id for run in home.runs()] == [
        "c-20250101-000000-f",
        "b-20260101-000000-aaaaaa",
        "a-20260102-000000-000000",
        new.run_id,
    ]


def test_ids_are_unique_and_hold_name_and_time(home, spec, monkeypatch):
    # The random end collides once; a run is never written over another.
    ends = iter(["0001", "aaaaaa", "0002", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr("secrets.token_hex", lambda size=None: next(ends))
    monkeypatch.setattr("pipeline.runs.directory.write_bytes", lambda path, data: None)
    monkeypatch.setattr("pipeline.home.datetime", _Frozen)
    assert home.new_run(spec).run_id == "small-20261120-171359-aaaaaa"
    assert home.new_run(spec).run_id == "small-20261120-171359-bbbbbb"


class _Frozen:
    @staticmethod
    def now(zone):
        from datetime import datetime

        return datetime(2026, 11, 20, 17, 13, 59, tzinfo=zone)


def test_a_run_is_found_by_its_id_or_a_unique_beginning(home):
    for name in ("digits-1", "digits-12", "mnist-1"):
        (home.runs_path / name).mkdir(parents=True)
    assert home.run("digits-1").run_id == "digits-1"  # exact, though another begins with it
    assert home.run("mni").run_id == "mnist-1"
    with pytest.raises(InvalidRequest, match=r"begins 2 run ids \(digits-1, digits-12\)"):
        home.run("digits")


@pytest.mark.parametrize("wanted", ["digtis-1", "", "../home", "/"])
def test_an_unknown_run(home, wanted):
    (home.runs_path / "digits-1").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match="there is no run") as caught:
        home.run(wanted)
    assert caught.value.exit_code == 2
    assert ("digits-1" if wanted == "digtis-1" else "umbra runs") in str(caught.value)
