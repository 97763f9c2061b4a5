"""The trainer keeps no actor that it does not need, on real Ray Train."""

import json

import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.cluster.lean_trainer import LeanTrainer
from pipeline.cluster.workers_group import NoGroup

pytestmark = pytest.mark.slow

NEEDED = {"TrainController", "RayTrainWorker", "SynchronizationActor"}


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


def test_it_keeps_the_actors_that_train_and_no_other(trainer, tmp_path):
    seen = tmp_path / "actors.json"

    def work():
        import ray._private.state
        import ray.train

        if ray.train.get_context().get_world_rank() == 0:
            actors = ray._private.state.actors().values()
            names = [each["ActorClassName"] for each in actors if each["State"] == "ALIVE"]
            seen.write_text(json.dumps(names))

    trainer(work, workers=2).fit()
    alive = json.loads(seen.read_text())
    # Tests before may have left a budget manager, which is no matter of Ray Train's.
    assert set(alive) - {"BudgetManager"} == NEEDED
    assert alive.count("RayTrainWorker") == 2


@pytest.mark.parametrize(
    "name",
    ["_register_sigint_handler", "_create_default_callbacks", "_initialize_and_run_controller"],
)
def test_what_is_replaced_is_there_in_this_version_of_ray(name):
    assert hasattr(DataParallelTrainer, name)
