"""Ray's head node without the servants that an embedded cluster has no use for.

Left idle each would cost as much as a worker, and only to start it takes seconds of a core.
`ray.init` has no switch for them, and the names here are Ray's own: `constraints.txt` fixes the
version, and `test_connection.py` looks at what runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray._private.node
from ray._private.node import Node
from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
from ray.experimental import internal_kv

_NOBODY = "127.0.0.1:0"


class _LeanNode(Node):
    def start_log_monitor(self) -> None:
        """Start none: it reads all that workers print, to show it here, which is never wanted."""

    def start_api_server(self, **of_the_dashboard: Any) -> None:
        """Start none: nobody looks at a dashboard."""

    def start_monitor(self) -> None:
        """Start none: there is nothing to scale."""


@contextmanager
def lean_node() -> Iterator[None]:
    """Let `ray.init` start such a node within the block."""
    ray._private.node.Node = _LeanNode
    try:
        yield
    finally:
        ray._private.node.Node = Node


def name_no_dashboard() -> None:
    """Tell the agent of the node that was started an address of a dashboard, which nobody serves.

    An agent that finds none asks again every second, and each time writes a traceback to its log.
    """
    internal_kv._internal_kv_put(DASHBOARD_ADDRESS, _NOBODY, namespace=KV_NAMESPACE_DASHBOARD)
