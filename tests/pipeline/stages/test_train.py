import hashlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from pipeline import stages
from pipeline.plan import plan
from synth.origin import seal_tensors


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
        job.weights.write_bytes(seal_tensors(save({"w": torch.zeros(1)}), job.origin))

    settle = SimpleNamespace(remote=budget.settle)
    group = lambda job, manager: SimpleNamespace(run=lambda on_steps: train(job))  # noqa: E731
    monkeypatch.setattr(stages.training, "training_group", group)
    monkeypatch.setattr(stages.calls, "get_result", lambda value: value)
    given = context(run)
    given.manager, given.tracked = SimpleNamespace(settle=settle), tracked
    given.plan = plan(run.spec(), trial=False)
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


def test_the_ledger_has_the_hash_of_the_weights(house, trained):
    stage, ran = trained
    stage()
    digest = hashlib.sha256(ran[0].weights.read_bytes()).hexdigest()
    assert house.budget.settled_weights(ran[0].reservation_id) == digest


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
