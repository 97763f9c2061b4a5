"""What becomes of a driver whose own machine is lost to the cluster: its raylet has died.

Ray lets such a driver wait, for workers that nobody starts any more, or ends it without a word.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray.exceptions import RayError

from pipeline.polling import polled
from privacy.errors import UmbraError

_SECONDS = 2.0  # between two looks


@contextmanager
def told_if_lost() -> Iterator[None]:
    """Raise in the block, which is the main thread's, if this machine is lost to the cluster.

    It is done by SIGTERM, whose handler has to raise something.

    Raises:
        UmbraError: it is.
    """
    here = ray.get_runtime_context().get_node_id()
    lost = False

    def look() -> None:
        nonlocal lost
        if not lost and not _lives(here):
            lost = True
            # Whatever the block waits for, in Ray or not, a signal wakes it.
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with polled(look, _SECONDS):
            yield
    except BaseException:
        if not lost:
            raise
        raise UmbraError(
            "Ray's raylet on this machine died: it was killed, or the machine was too busy to "
            "answer. `umbra resume` goes on from what is durable"
        ) from None


def _lives(node: str) -> bool:
    with suppress(RayError):  # a cluster that cannot be asked tells nothing of its machines
        return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
    return True
