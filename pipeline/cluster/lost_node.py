"""A driver whose own machine is lost to the cluster: its raylet has died.

Ray lets such a driver wait, for workers that nobody starts any more, or ends it without a word.
"""

from collections.abc import Callable
from contextlib import suppress

import ray
from ray.exceptions import RayError

from privacy.errors import UmbraError


def lost_node() -> Callable[[], UmbraError | None]:
    """Return what tells in words whether this machine, now of the cluster, has been lost to it."""
    here = ray.get_runtime_context().get_node_id()

    def lost() -> UmbraError | None:
        if _lives(here):
            return None
        return UmbraError(
            "Ray's raylet on this machine died: it was killed, or the machine was too busy to "
            "answer. `umbra resume` goes on from what is durable"
        )

    return lost


def _lives(node: str) -> bool:
    with suppress(RayError):  # a cluster that cannot be asked tells nothing of its machines
        return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
    return True
