"""`umbra` as a person types it, without starting a process."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.cli.main import main
from privacy.ledger.records import Facts


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which has to be JSON and nothing else."""

        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("UMBRA_LEDGER_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "UMBRA_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    # Where the fixtures `house` and `finished` put their home, too.
    monkeypatch.setenv("UMBRA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def umbra(capsys):
    """Run a command; whatever happens, nobody sees a traceback."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)

    return run


@pytest.fixture
def no_ray(monkeypatch):
    """Let a run that would really begin fail the test."""

    def execute(*arguments, **options):
        raise AssertionError("the run was begun")

    monkeypatch.setattr("pipeline.runs.engine.execute", execute)


@pytest.fixture
def write_spec(blots, tmp_path):
    """A spec file for the random images with parts of its text replaced."""

    def write(*changes):
        text = (blots / "blots.yaml").read_text()
        # The file lies elsewhere than the data.
        anchored = [("path: train", f"path: {blots}/train"), ("path: hold", f"path: {blots}/hold")]
        for old, new in (*changes, *anchored):
            assert text.count(old) == 1 or (old, new) in anchored, old
            text = text.replace(old, new)
        path = tmp_path / "spec.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def facts():
    """What the data set of `house` is: by default, what the spec of the random images says."""
    return Facts(public_holdout=True)


@pytest.fixture
def house(house, facts):
    """The home, whose data set's facts are declared."""
    house.budget.declare("blots", 8.5, 1e-3, facts)
    return house
