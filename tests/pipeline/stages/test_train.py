from types import SimpleNamespace

import pytest
import torch

from pipeline import stages
from pipeline.plan import plan
from pipeline.stages import _skipped
from privacy.errors import IntegrityBroken
from synth.checkpoint import Checkpoint, save


@pytest.fixture
def checkpoints(tmp_path):
    for step in (2, 4):
        weights = {"w": torch.full((2,), float(step))}
        save(tmp_path, Checkpoint(step, 1, "dp-sgd", weights, weights, {}, "1:ab"))
    return tmp_path


def _damage(folder, step):
    with (folder / f"step-{step:06d}" / "model.safetensors").open("ab") as file:
        file.write(b"x")


def test_intact_checkpoints_leave_no_message(checkpoints, tmp_path):
    assert _skipped(checkpoints) == _skipped(tmp_path / "none") == ""


def test_a_damaged_newest_checkpoint_is_reported_and_skipped(checkpoints):
    _damage(checkpoints, 4)
    assert "step-000004" in _skipped(checkpoints) and "step-000002" not in _skipped(checkpoints)


def test_with_no_sound_one_left_training_does_not_begin_anew_by_itself(checkpoints):
    _damage(checkpoints, 2)
    _damage(checkpoints, 4)
    with pytest.raises(IntegrityBroken, match="Restore one from a backup") as broken:
        _skipped(checkpoints)
    assert broken.value.exit_code == 4
    assert "step-000002" in str(broken.value) and "step-000004" in str(broken.value)


@pytest.fixture
def trained(house, blots_spec, context, tracked, monkeypatch):
    """The stage on a pretended cluster, its ledger real; counts how often training ran."""
    run = house.reserve(blots_spec())
    budget, ran = house.budget, []

    def train(job):
        ran.append(job)
        attempt = budget.begin_attempt(job.reservation_id, f"start-{len(ran)}")
        budget.charge(job.reservation_id, "dp-sgd", 4, attempt, f"all-{len(ran)}")
        job.weights.parent.mkdir(parents=True, exist_ok=True)
        job.weights.write_bytes(b"weights")

    settle = SimpleNamespace(remote=budget.settle)
    group = lambda job, manager: SimpleNamespace(run=lambda on_steps: train(job))  # noqa: E731
    monkeypatch.setattr(stages.training, "training_group", group)
    monkeypatch.setattr(stages.calls, "get_result", lambda value: value)
    given = context(run)
    given.manager, given.tracked = SimpleNamespace(settle=settle), tracked
    given.plan = plan(run.spec(), trial=False)
    given.reservation_id = run.state().reservation_id
    return lambda: stages.Train().run(given, tracked), ran


def test_a_run_that_died_after_it_was_settled_is_not_trained_again(trained, tracked, monkeypatch):
    stage, ran = trained

    def offline(*_):
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(tracked, "log_sampling_model", offline)
        with pytest.raises(ConnectionError):
            stage()
    stage()
    assert len(ran) == 1


def test_a_run_that_died_before_its_weights_is_trained_again(trained, monkeypatch):
    stage, ran = trained

    def die(*_):
        ran.append("died")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages.training, "training_group", die)
        with pytest.raises(KeyboardInterrupt):
            stage()
    stage()
    assert len(ran) == 2
