"""Ray Train's trainer without what a run of ours has no use for.

Every actor is a process that takes seconds of a core to start, and up to one per cent of a core for
as long as the training lasts: Ray wakes it a hundred times a second. So Ray Train's controller runs
in the driver's process, which waits for it in any case, and one worker, who has nobody to meet, is
given no place to meet. The names with an underscore are Ray's own and may change with it:
`constraints.txt` fixes the version, and `test_lean_trainer.py` looks at what runs.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.util.client import ray as ray_client


class LeanTrainer(TorchTrainer):
    """A `TorchTrainer` that keeps fewer actors and leaves Ctrl-C to its caller.

    What a signal raises in the midst of `fit` ends it, and the workers with it; those that were
    only being started, and their room, end when this process leaves the cluster.
    """

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out those that keep an actor and have nothing to do.

        There is no Ray data set; and workers' room is given back with the job, which ends if its
        driver does.
        """
        idle = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, idle)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Register none: Ray's handler outlives the training and exits with 0."""

    def _initialize_and_run_controller(self, **controller: Any) -> Result:
        if isinstance(controller["scaling_policy"], FixedScalingPolicy):
            controller["scaling_policy"] = _UncoordinatedScalingPolicy(self.scaling_config)
        if ray_client.is_connected():
            # Over ray:// this process is no part of the cluster, and the controller has to be.
            return super()._initialize_and_run_controller(**controller)
        return _run_here(controller)


def _run_here(arguments: dict[str, Any]) -> Result:
    """Run Ray Train's controller in this process until the training has ended."""
    # What it logs may quote what workers raised, and so records; here that would be seen.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL + 1)
    controller = _Controller(**arguments)
    # Not `asyncio.run`, which keeps Ctrl-C to itself while the controller waits for Ray.
    loop = asyncio.new_event_loop()
    running = loop.create_task(controller.run())
    try:
        loop.run_until_complete(running)
    except BaseException:
        with suppress(Exception):
            _end(running, loop)
            # Or they would go on, and keep their room, until this process has left the cluster.
            controller.end_workers()
        raise
    finally:
        loop.close()
    return controller.get_result()


def _end(task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
    """Leave no task of which asyncio would complain on the terminal."""
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    if not task.cancelled():
        task.exception()


class _WorkerGroup(WorkerGroup):
    """Workers of a controller that is no actor."""

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,  # serves checkpoints that are reported, and none are
                **{name: values[number] for name, values in train_context_args.items()},
            )
            for number, worker in enumerate(workers)
        ]
        ray.get(told)
        if len(workers) == 1:
            ray.kill(sync_actor)
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):
    worker_group_cls = _WorkerGroup

    def end_workers(self) -> None:
        """End those that there are."""
        if self._worker_group:
            self._worker_group.abort()


class _UncoordinatedScalingPolicy(FixedScalingPolicy):
    """A fixed number of workers, told to no coordinator.

    A cluster that can grow sees by their placement group that they wait for room; the coordinator
    is an actor that shares it out between trainings and Ray data sets.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start no coordinator."""

    def _maybe_send_resource_request(self) -> None:
        """Tell it nothing."""
