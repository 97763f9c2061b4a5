"""The trainer keeps no actor that it does not need, on real Ray Train."""

import json
import threading
import time

import pytest
from ray import PlacementGroupID
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

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


@pytest.fixture
def room_given_back():
    """Give back what workers held, which happens only with the job's end: this job goes on."""
    yield
    for identity, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(identity))))


def test_it_can_be_ended_from_another_thread(trainer, tmp_path, room_given_back):
    begun = tmp_path / "begun"

    def work():
        begun.touch()
        time.sleep(600)

    training = trainer(work)
    training.end()  # there is nothing to end yet

    def end():
        while not begun.exists():
            time.sleep(0.05)
        training.end()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    with pytest.raises(Exception, match="died"):
        training.fit()
    thread.join()


@pytest.mark.parametrize(
    "name",
    ["_register_sigint_handler", "_create_default_callbacks", "_initialize_and_run_controller"],
)
def test_what_is_replaced_is_there_in_this_version_of_ray(name):
    assert hasattr(DataParallelTrainer, name)
