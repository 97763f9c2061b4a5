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
