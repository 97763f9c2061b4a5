"""An error meant for users, carried past Ray Train, which would turn it into a stack trace."""

from contextlib import suppress

from pipeline.cluster.noticeboard import Noticeboard
from privacy.errors import UmbraError

_FIRST = "first"


class Refusal:
    """The error that ended a training, for all its workers; it is final.

    What cannot be told or asked is an `UmbraError`, too: silence would pass for success.
    """

    def __init__(self) -> None:
        self._board = Noticeboard()

    def tell(self, error: UmbraError) -> None:
        """Note an error; the first counts, for those that follow are mostly its consequences."""
        self._board.put_first(_FIRST, error)

    def read(self) -> UmbraError | None:
        """Return the first error, if there was one."""
        told = self._board.get(_FIRST)
        assert told is None or isinstance(told, UmbraError)  # noqa: S101
        return told

    def clear(self) -> None:
        """Leave nothing in the cluster."""
        with suppress(UmbraError):
            self._board.clear()
