"""Training on real Ray Train; what becomes of refusals, failures and changed data."""

import pickle
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pipeline.cluster.training as subject
from pipeline.cluster.budget_actor import budget_manager
from pipeline.cluster.training import TrainingJob, train
from pipeline.cluster.workers_group import _backend
from pipeline.models import build_denoiser, build_training
from pipeline.runs.dataset_identity import TRAIN, DatasetIdentity
from pipeline.spec.sections import Resources
from privacy.errors import BudgetRefused, DataError, UmbraError
from synth.checkpoint import newest

STEPS = 4


@pytest.fixture
def prepare(house, blots_spec):
    """Reserve for the spec with changes, and return the run's job."""

    def make(*changes):
        run = house.reserve(blots_spec(*changes))
        spec, reserved = run.spec(), run.state().reservation_id
        return TrainingJob(
            spec=spec,
            training=build_training(spec, house.budget.reservation(reserved)),
            reservation_id=reserved,
            content=DatasetIdentity.of(run, "blots", TRAIN),
            checkpoints=run.internal / "checkpoints",
            traces=run.internal / "traces",
            weights=run.release / "model" / "weights.safetensors",
        )

    return make


@pytest.fixture
def start(embedded, house, tmp_path):
    def run(job, on_steps=lambda done: None):
        manager = budget_manager(house.access)
        train(job, job.reservation_id, tmp_path / "ray-train", manager, on_steps)

    return run


TWO = ("evaluate:", "resources: {workers: 2}\nevaluate:")


@pytest.fixture
def two(embedded):
    if embedded["CPU"] < 2:
        pytest.skip("needs two processors")


@pytest.mark.slow
def test_two_workers_train_one_model_and_charge_every_step(two, start, prepare, house):
    job, on_interrupt, told = prepare(TWO), signal.getsignal(signal.SIGINT), []
    start(job, told.append)
    assert told[-1] == STEPS
    assert signal.getsignal(signal.SIGINT) is on_interrupt  # Ray's would exit with 0
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


@pytest.mark.slow
def test_the_text_of_an_unforeseen_error_stays_inside(start, prepare, secret, monkeypatch, capfd):
    class Bomb:
        @property
        def dpsgd(self):
            raise ArithmeticError(secret)

    monkeypatch.setattr(subject, "_RESTARTS", 0)
    job = replace(prepare(), training=Bomb())
    with pytest.raises(UmbraError) as told:
        start(job)
    (trace,) = job.traces.iterdir()
    assert secret in trace.read_text()
    assert "ArithmeticError" in str(told.value) and str(trace) in str(told.value)
    assert secret not in str(told.value) + "".join(capfd.readouterr())
    assert told.value.__cause__ is None and told.value.__suppress_context__


def test_changed_data_are_refused_before_anything_is_charged(prepare, blots, tmp_path, house):
    job = prepare()
    assert len(subject._load(job, torch.device("cpu"))) == 40
    archive = dict(np.load(blots / "train.npz"))
    archive["images"][7, 0, 0, 0] ^= 1
    np.savez(tmp_path / "train.npz", **archive)
    source = job.spec.data.source.model_copy(update={"path": tmp_path / "train.npz"})
    data = job.spec.data.model_copy(update={"source": source})
    changed = replace(job, spec=job.spec.model_copy(update={"data": data}))
    with pytest.raises(DataError, match="changed since this run was submitted"):
        subject._load(changed, torch.device("cpu"))
    assert house.budget.charged_steps(job.reservation_id) == {"dp-sgd": 0}


def test_what_travels_to_workers_holds_no_image(prepare, blots):
    job = prepare()
    sent = pickle.dumps(job)
    images = np.load(blots / "train.npz")["images"]
    assert len(sent) < images.nbytes * 2
    assert not any(image.tobytes()[:16] in sent for image in images)
    assert job.content.key not in repr(job).encode()


def test_a_share_of_a_gpu_is_what_a_worker_holds(prepare):
    training = prepare().training
    asked = Resources(workers=2, gpus_per_worker=0.5, cpus_per_worker=3, memory_gib_per_worker=1)
    scaling = subject._scaling(asked, training)
    assert (scaling.num_workers, scaling.use_gpu) == (2, True)
    assert scaling.resources_per_worker == {"CPU": 3, "GPU": 0.5, "memory": 1024**3}
    assert scaling.total_resources["GPU"] == 1
    assert not subject._scaling(Resources(), training).use_gpu


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (0.5, "gloo"), (1, "nccl")])
def test_workers_that_share_a_gpu_do_not_meet_by_nccl(gpus, backend):
    assert _backend(gpus) == backend


def test_auto_takes_as_many_workers_as_there_is_room_for(prepare, monkeypatch):
    monkeypatch.setenv(subject._START_TIMEOUT, "300")
    scaling = subject._scaling(Resources(workers="auto"), prepare().training)
    assert (scaling.min_workers, scaling.max_workers) == (1, 20)  # the expected batch
    assert scaling.elastic_resize_monitor_interval_s == float("inf")


class _Dead(Exception):
    pass


def test_a_failure_of_all_restarts_is_told_by_its_types(secret):
    failed = subject._in_words(_group(_Dead(secret), ValueError(secret)))
    assert "ValueError, _Dead" in failed and secret not in failed


def test_a_worker_that_could_tell_is_quoted(secret):
    words = subject._in_words(_group(_Dead(secret), subject.WorkerFailed("failed with KeyError")))
    assert words == "training: failed with KeyError"


def _group(*failures):
    error = RuntimeError("a group failed")
    error.worker_failures = dict(enumerate(failures))
    return error
