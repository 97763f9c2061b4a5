"""What a run needs last is checked before anything is reserved, and can be corrected after."""

import socket

import numpy as np
import pytest

from pipeline.home import Home
from pipeline.runs import engine, preflight
from privacy.errors import BudgetRefused, DataError, InvalidRequest, UmbraError

FEATURES = ("  classifiers: [logreg, mlp]", "  classifiers: [logreg, mlp]\n  features: net.pt")


@pytest.fixture(autouse=True)
def _declared_facts(house, blots_spec):
    house.declare(blots_spec())


@pytest.fixture(scope="module")
def other_holdouts(blots):
    """Holdouts beside the right one: of another size, and with too few images."""
    np.savez(
        blots / "wrong.npz", images=np.zeros((20, 9, 9, 1), np.uint8), labels=np.zeros(20, int)
    )
    np.savez(blots / "few.npz", images=np.zeros((6, 8, 8, 1), np.uint8), labels=np.zeros(6, int))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (("holdout.npz", "nowhere.npz"), DataError, "nowhere.npz"),
        (("holdout.npz", "wrong.npz"), DataError, "9"),
        (("holdout.npz", "few.npz"), DataError, "6 images; at least 7"),
        (FEATURES, InvalidRequest, "evaluate.features: .*net.pt"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_reserved(
    house, blots_spec, other_holdouts, change, error, words
):
    before = house.kinds()
    with pytest.raises(error, match=words):
        engine.submit(blots_spec(change), house.home, embedded=True)
    assert house.home.runs() == () and house.kinds() == before


class TestMlflow:
    def _home(self, house, uri):
        env = {"UMBRA_HOME": str(house.home.path), "MLFLOW_TRACKING_URI": uri}
        return Home.locate(env)

    def test_that_does_not_answer_is_told_before(self, house, blots_spec):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
            with pytest.raises(UmbraError, match="MLflow at"):
                engine.submit(blots_spec(), self._home(house, uri))
        assert house.home.runs() == ()

    def test_whose_database_is_something_else_is_told_before(self, house, blots_spec, tmp_path):
        (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
        with pytest.raises(UmbraError, match="MLflow at"):
            engine.submit(blots_spec(), self._home(house, f"sqlite:///{tmp_path}/mlflow.db"))
        assert house.home.runs() == ()

    def test_that_is_not_there_yet_is_not_made(self, house, blots_spec, tmp_path):
        engine.submit(blots_spec(), self._home(house, f"sqlite:///{tmp_path}/mlflow.db"))
        assert not (tmp_path / "mlflow.db").exists()


def test_a_folder_too_long_for_sockets_is_replaced_or_refused(monkeypatch, tmp_path):
    from pipeline.cluster import connection

    deep = tmp_path / "/".join(["slurm_jobdir"] * 8)
    deep.mkdir(parents=True)
    monkeypatch.setattr(connection.tempfile, "gettempdir", lambda: str(deep))
    assert str(connection.socket_folder()) == "/tmp"
    monkeypatch.setattr(connection.calls, "is_writable", lambda folder: False)
    with pytest.raises(UmbraError, match="set TMPDIR to a shorter one"):
        connection.socket_folder()


def test_a_fresh_home_gets_neither_key_nor_ledger_from_what_is_refused(tmp_path, blots_spec):
    home = Home.locate({"UMBRA_HOME": str(tmp_path / "fresh")})
    with pytest.raises(BudgetRefused, match="umbra budget declare blots"):
        engine.submit(blots_spec(), home)
    assert [path.name for path in home.path.rglob("*")] == ["runs"]


class TestCorrection:
    @pytest.fixture
    def failed(self, house, blots_spec):
        """A run whose images are made and whose evaluation failed."""
        run = house.finish(house.reserve(blots_spec(FEATURES)))
        stages = tuple(stage for stage in run.state().stages if stage.name != "evaluate")
        run.update(status="failed", stages=stages)
        return run

    def test_the_evaluation_follows_the_corrected_spec_and_the_hash_stays(self, failed, blots_spec):
        before = failed.spec()
        preflight.correct_evaluation(failed, blots_spec(("mlp]", "mlp]\n  neighbours: 4")))
        corrected = failed.evaluated_spec()
        assert (corrected.evaluate.features, corrected.evaluate.neighbours) == ("builtin", 4)
        assert failed.spec() == before and corrected.train == before.train

    def test_before_it_is_corrected_it_is_as_submitted(self, failed):
        assert failed.evaluated_spec() == failed.spec()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (("steps: 4", "steps: 5"), "train"),
            (("    public: true", "    public: false"), "data"),
            (("epsilon: 8", "epsilon: 7"), "privacy"),
        ],
    )
    def test_nothing_else_can_be_changed(self, failed, blots_spec, change, words):
        with pytest.raises(InvalidRequest, match=f"in more than its evaluation.*{words}"):
            preflight.correct_evaluation(failed, blots_spec(change))
        assert not failed.evaluation_path.exists()

    def test_what_makes_a_private_holdout_public_in_the_file_is_not_taken(self, house, blots_spec):
        private = ("    public: true", "    public: false")
        run = house.finish(house.reserve(blots_spec(private)))
        run.evaluation_path.write_text(blots_spec(("epsilon: 8", "epsilon: 80")).to_yaml())
        assert run.evaluated_spec() == run.spec()

    def test_a_run_that_is_worked_on_is_left_alone(self, failed, blots_spec):
        with failed.lock(), pytest.raises(InvalidRequest, match="being worked on"):
            preflight.correct_evaluation(failed, blots_spec())
        assert not failed.evaluation_path.exists()
        preflight.correct_evaluation(failed, blots_spec())

    def test_what_cannot_be_evaluated_either_is_refused(self, failed, blots_spec):
        with pytest.raises(DataError, match=r"nowhere\.npz"):
            preflight.correct_evaluation(failed, blots_spec(("holdout.npz", "nowhere.npz")))
        assert not failed.evaluation_path.exists()

    @pytest.mark.parametrize("stage", ["train", "evaluate"])
    def test_only_an_evaluation_that_is_due_can_be_corrected(self, failed, blots_spec, stage):
        stages = [] if stage == "train" else [*failed.state().stages, {"name": stage, "seconds": 1}]
        failed.update(stages=stages)
        with pytest.raises(InvalidRequest, match="until it is done"):
            preflight.correct_evaluation(failed, blots_spec())
