"""Two processes that take turns, so that only one of them works and noise hits both alike."""

import os
import select
from pathlib import Path
from time import monotonic

_PATIENCE = 300.0  # seconds; the other process has died by then


class Turns:
    """One of two sides, each in a process of its own; at first nobody has the turn.

    Attributes:
        waited: seconds that every turn was waited for.
    """

    def __init__(self, folder: Path, side: int) -> None:
        """Join the pipes in `folder`, as side 0 or 1; who comes first makes them."""
        pipes = [folder / "turn-of-0", folder / "turn-of-1"]
        for pipe in pipes:
            if not pipe.exists():
                os.mkfifo(pipe)
        # Open for both: it neither waits for the other side, nor is a byte lost before it comes.
        self._mine, self._theirs = (os.open(pipes[n], os.O_RDWR) for n in (side, 1 - side))
        self.waited: list[float] = []

    def give(self) -> None:
        """Give the other side the turn."""
        os.write(self._theirs, b".")

    def take(self) -> None:
        """Wait for the turn.

        Raises:
            TimeoutError: the other side does not give it.
        """
        begun = monotonic()
        if not select.select([self._mine], [], [], _PATIENCE)[0]:
            raise TimeoutError("the other process does not give the turn back")
        os.read(self._mine, 1)
        self.waited.append(monotonic() - begun)
