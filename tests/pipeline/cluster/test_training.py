"""Training on real Ray actors; what becomes of refusals, failures and changed data."""

import os
import pickle
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pipeline.cluster.training as subject
from pipeline.cluster.actor_group import MAX_RESTARTS
from pipeline.cluster.budget_actor import budget_manager
from pipeline.cluster.training import (
    TrainingJob,
    TrainingWorker,
    _backend,
    load_records,
    training_group,
)
from pipeline.models import build_denoiser
from pipeline.runs.dataset_identity import TRAIN, DatasetIdentity
from pipeline.runs.origin import origin_of
from privacy.collective import SingleProcess
from privacy.errors import BudgetRefused, DataError, UmbraError
from synth.checkpoint import newest
from synth.methods.base import Attempt

STEPS = 4


@pytest.fixture
def prepare(house, blots_spec):
    """Reserve for the spec with changes, and return the run's job."""

    def make(*changes):
        run = house.reserve(blots_spec(*changes))
        spec, reserved = run.spec(), run.state().reservation_id
        return TrainingJob(
            spec=spec,
            components=house.budget.reservation(reserved).plan,
            reservation_id=reserved,
            content=DatasetIdentity.of(run, "blots", TRAIN),
            checkpoints=run.internal / "checkpoints",
            traces=run.internal / "traces",
            weights=run.release / "model" / "weights.safetensors",
            origin=origin_of(run, house.budget.reservation(reserved)),
        )

    return make


@pytest.fixture
def start(embedded, house):
    def run(job, on_steps=lambda done: None):
        manager = budget_manager(house.access)
        training_group(job, manager).run(on_steps)

    return run


TWO = ("evaluate:", "resources: {workers: 2}\nevaluate:")


@pytest.fixture
def two(embedded):
    if embedded["CPU"] < 2:
        pytest.skip("needs two processors")


@pytest.mark.slow
def test_two_workers_train_one_model_and_charge_every_step(two, start, prepare, house):
    job, on_interrupt, counts = prepare(TWO), signal.getsignal(signal.SIGINT), []
    start(job, counts.append)
    assert counts[-1] == STEPS
    assert signal.getsignal(signal.SIGINT) is on_interrupt
    assert house.budget.charged_steps(job.reservation_id) == {"dp-sgd": STEPS}
    last = newest(job.checkpoints).checkpoint
    assert last.step == STEPS
    weights = load_file(job.weights)
    build_denoiser(job.spec).load_state_dict(weights)
    assert all(torch.equal(weights[name], last.ema[name]) for name in weights)
    assert list(job.traces.parent.glob("traces/*")) == []


@pytest.mark.slow
def test_a_refusal_reaches_the_driver_though_another_worker_waits(two, start, prepare, house):
    job = prepare(TWO)
    house.budget.settle(job.reservation_id)
    with pytest.raises(BudgetRefused) as refused:
        start(job)
    assert refused.value.exit_code == 3
    assert house.budget.charged_steps(job.reservation_id) == {"dp-sgd": 0}
    assert not job.weights.exists()


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """Have training workers fail `harm(number of the start)` first; return how many started."""

    def set_up(harm):
        class Harmed(TrainingWorker):
            def work(self, *arguments):
                number = len(list(tmp_path.glob("start-*")))
                (tmp_path / f"start-{os.getpid()}").touch()
                harm(number)
                super().work(*arguments)

        monkeypatch.setattr(subject, "TrainingWorker", Harmed)
        return lambda: len(list(tmp_path.glob("start-*")))

    return set_up


def _die_twice(number):
    if number < MAX_RESTARTS:
        os.kill(os.getpid(), signal.SIGKILL)


def _die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(number):
    raise BudgetRefused("no budget is left")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again(start, prepare, house, starts):
    job, count = prepare(), starts(_die_twice)
    start(job)
    assert count() == MAX_RESTARTS + 1 and job.weights.exists()
    assert house.budget.charged_steps(job.reservation_id) == {"dp-sgd": STEPS}


@pytest.mark.slow
def test_a_group_is_restarted_at_most_twice(start, prepare, starts):
    job, count = prepare(), starts(_die)
    with pytest.raises(UmbraError, match=r"training: a worker process died"):
        start(job)
    assert count() == MAX_RESTARTS + 1


@pytest.mark.slow
def test_a_refusal_ends_the_group_at_once(start, prepare, starts):
    job, count = prepare(), starts(_refuse)
    with pytest.raises(BudgetRefused, match=r"^no budget is left$"):
        start(job)
    assert count() == 1


@pytest.mark.slow
def test_the_text_of_an_unforeseen_error_stays_inside(start, prepare, secret, capfd):
    class Bomb:
        @property
        def key(self):
            raise ArithmeticError(secret)

    job = replace(prepare(), content=Bomb())
    with pytest.raises(UmbraError) as raised:
        start(job)
    traces = list(job.traces.iterdir())
    assert traces and all(secret in trace.read_text() for trace in traces)
    assert "ArithmeticError" in str(raised.value)
    assert any(str(trace) in str(raised.value) for trace in traces)
    assert secret not in str(raised.value) + "".join(capfd.readouterr())
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


def test_changed_data_are_refused_before_anything_is_charged(prepare, blots, tmp_path, house):
    job, loading = prepare(), (Attempt(1, bytes(32)), SingleProcess(), torch.device("cpu"))
    assert len(load_records(job, *loading)) == 40
    archive = dict(np.load(blots / "train.npz"))
    archive["images"][7, 0, 0, 0] ^= 1
    np.savez(tmp_path / "train.npz", **archive)
    source = job.spec.data.source.model_copy(update={"path": tmp_path / "train.npz"})
    data = job.spec.data.model_copy(update={"source": source})
    changed = replace(job, spec=job.spec.model_copy(update={"data": data}))
    with pytest.raises(DataError, match="changed since this run was submitted"):
        load_records(changed, *loading)
    assert house.budget.charged_steps(job.reservation_id) == {"dp-sgd": 0}


def test_the_job_sent_to_workers_holds_no_image(prepare, blots):
    job = prepare()
    sent = pickle.dumps(job)
    images = np.load(blots / "train.npz")["images"]
    assert len(sent) < images.nbytes * 2
    assert not any(image.tobytes()[:16] in sent for image in images)
    assert job.content.key not in repr(job).encode()


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (0.5, "gloo"), (1, "nccl")])
def test_workers_that_share_a_gpu_use_gloo(gpus, backend):
    assert _backend(gpus) == backend
