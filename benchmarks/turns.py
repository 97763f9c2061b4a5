"""Two processes that take turns, so that only one works at a time and both see the same noise."""

import os
import select
from pathlib import Path
from time import monotonic

_TIMEOUT = 300.0  # seconds after which the other process must have died


class Turns:
    """One of two sides, in two processes; at first neither has the turn.

    Attributes:
        waited: seconds of waiting for each turn.
    """

    def __init__(self, folder: Path, side: int) -> None:
        """Open the pipes in `folder` as side 0 or 1, creating them if missing."""
        pipes = [folder / "turn-of-0", folder / "turn-of-1"]
        for pipe in pipes:
            if not pipe.exists():
                os.mkfifo(pipe)
        # Opened for reading and writing, which neither blocks nor loses a byte before the other
        # side comes.
        self._mine, self._theirs = (os.open(pipes[n], os.O_RDWR) for n in (side, 1 - side))
        self.waited: list[float] = []

    def give(self) -> None:
        """Give the other side the turn."""
        os.write(self._theirs, b".")

    def take(self) -> None:
        """Wait for the turn.

        Raises:
            TimeoutError: the other side does not give it in time.
        """
        begun = monotonic()
        if not select.select([self._mine], [], [], _TIMEOUT)[0]:
            raise TimeoutError(f"the other process did not give the turn back in {_TIMEOUT:g} s")
        os.read(self._mine, 1)
        self.waited.append(monotonic() - begun)
