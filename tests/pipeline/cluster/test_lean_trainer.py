"""The trainer keeps no actor that it does not need, on real Ray Train."""

import gc
import inspect
import json
import logging
import time

import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.cluster import lean_trainer as subject
from pipeline.cluster.abort import raised_if
from pipeline.cluster.lean_trainer import LeanTrainer
from pipeline.cluster.workers_group import NoGroup
from privacy.errors import DataError


@pytest.fixture
def trainer(embedded, tmp_path):
    def make(work, workers=1):
        return LeanTrainer(
            work,
            torch_config=NoGroup(),
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(name="lean", storage_path=str(tmp_path / "ray")),
        )

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "needed"),
    [(1, ["RayTrainWorker"]), (2, ["RayTrainWorker", "RayTrainWorker", "SynchronizationActor"])],
)
def test_it_keeps_the_actors_that_train_and_no_other(trainer, tmp_path, workers, needed):
    seen = tmp_path / "actors.json"

    def work():
        import ray._private.state
        import ray.train

        if ray.train.get_context().get_world_rank() > 0:
            return
        end = time.monotonic() + 30
        # Who is ended is seen for a moment more.
        while time.monotonic() < end:
            actors = ray._private.state.actors().values()
            alive = sorted(each["ActorClassName"] for each in actors if each["State"] == "ALIVE")
            # Tests before may have left a budget manager, which is no matter of Ray Train's.
            seen.write_text(json.dumps([name for name in alive if name != "BudgetManager"]))
            if json.loads(seen.read_text()) == needed:
                break
            time.sleep(0.1)

    result = trainer(work, workers).fit()
    assert result.error is None
    assert json.loads(seen.read_text()) == needed


@pytest.mark.slow
def test_what_ends_the_wait_ends_the_training_here(trainer, caplog):
    lost = DataError("lost")
    with pytest.raises(DataError, match="lost"), raised_if(lambda: lost, patience=8):
        trainer(lambda: time.sleep(120)).fit()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []
    assert trainer(lambda: None, workers=2).fit().error is None  # there is room again


def test_what_the_controller_logs_is_not_seen_here(monkeypatch):
    seen, logger = [], logging.getLogger("ray.train")
    handler = logging.Handler()
    handler.emit = seen.append
    logger.addHandler(handler)

    class Controller:
        async def run(self):
            logging.getLogger("ray.train.v2.controller").critical("what a worker raised")

        def get_result(self):
            return "done"

    monkeypatch.setattr(subject, "_Controller", Controller)
    try:
        assert subject._run_here({}) == "done"
    finally:
        logger.removeHandler(handler)
    assert seen == []


def test_over_a_client_the_controller_stays_in_the_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(subject.ray_client, "is_connected", lambda: True, raising=False)
    monkeypatch.setattr(
        DataParallelTrainer, "_initialize_and_run_controller", lambda self, **of: "in the cluster"
    )
    trainer = LeanTrainer(lambda: None, run_config=RunConfig(storage_path=str(tmp_path)))
    assert trainer._initialize_and_run_controller(scaling_policy=None) == "in the cluster"


@pytest.mark.parametrize(
    ("theirs", "ours", "name"),
    [
        (DataParallelTrainer, LeanTrainer, "_register_sigint_handler"),
        (DataParallelTrainer, LeanTrainer, "_create_default_callbacks"),
        (DataParallelTrainer, LeanTrainer, "_initialize_and_run_controller"),
        (TrainController, subject._Controller, "worker_group_cls"),
        (WorkerGroup, subject._WorkerGroup, "_init_train_context_on_workers"),
    ],
)
def test_what_is_replaced_is_there_in_this_version_of_ray(theirs, ours, name):
    assert getattr(theirs, name) is not getattr(ours, name)
    if name == "_init_train_context_on_workers":
        given = [inspect.signature(getattr(owner, name)).parameters for owner in (theirs, ours)]
        assert list(given[0]) == list(given[1])
