"""Ray Train's trainer without what a run of ours has no use for.

Every actor is a process that takes half a second of two cores to start, and somewhat under one per
cent of a core for as long as the training lasts. The names with an underscore are Ray's own and may
change with it: `constraints.txt` fixes the version, and `test_lean_trainer.py` looks at what runs.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class LeanTrainer(TorchTrainer):
    """A `TorchTrainer` that keeps fewer actors and leaves Ctrl-C to its caller."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Register none: Ray's handler outlives the training and exits with 0."""

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out those that keep an actor and have nothing to do.

        There is no Ray data set; and workers' room is given back with the job, which ends if its
        controller does.
        """
        idle = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, idle)]

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        if isinstance(controller["scaling_policy"], FixedScalingPolicy):
            controller["scaling_policy"] = _UncoordinatedScalingPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**controller)


class _UncoordinatedScalingPolicy(FixedScalingPolicy):
    """A fixed number of workers, told to no coordinator.

    A cluster that can grow sees by their placement group that they wait for room; the coordinator
    is an actor that shares it out between trainings and Ray data sets.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start no coordinator."""

    def _maybe_send_resource_request(self) -> None:
        """Tell it nothing."""
