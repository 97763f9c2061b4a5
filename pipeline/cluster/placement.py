"""Where helper actors are: Ray places those that ask for no processor on any machine at random."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that keeps an actor on the driver's machine.

    No other machine that is lost takes it along, and if that one is lost, the run has to be resumed
    in any case.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
