"""How far the parts of a stage are, told by workers and read by whoever shows it."""

import math
from contextlib import suppress
from time import monotonic

from pipeline.cluster.noticeboard import Noticeboard
from privacy.errors import UmbraError

_SECONDS = 1.0  # between two words of a worker: steps may take milliseconds, a word takes one


class ProgressBoard:
    """Holds the newest count of every part: steps of a phase, images of a shard; all public.

    It is only for people to see: a cluster that cannot be asked stops nobody.
    """

    def __init__(self) -> None:
        self._board = Noticeboard()
        self._told = -math.inf

    def tell(self, part: str, done: int, total: int) -> None:
        """Tell that `done` of a part's `total` units are done; not all that is told is noted."""
        if done < total and monotonic() - self._told < _SECONDS:
            return
        self._told = monotonic()
        with suppress(UmbraError):
            self._board.put(part, done)

    def forget(self, part: str) -> None:
        """Take a part away."""
        with suppress(UmbraError):
            self._board.remove(part)

    def read(self) -> dict[str, int]:
        """Return the counts by part."""
        with suppress(UmbraError):
            return self._board.everything()
        return {}

    def clear(self) -> None:
        """Leave nothing in the cluster."""
        with suppress(UmbraError):
            self._board.clear()
