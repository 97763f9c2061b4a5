"""Ends a training that cannot go on: Ray Train would start its workers anew, for ever if need be.

It does so after an error for users, which is final, to hear it again; and on a full disk, where no
process can be started.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from pipeline.polling import polled
from privacy.errors import UmbraError

_SECONDS = 1.0  # between two looks
_PATIENCE = 20.0  # seconds that everybody has to end by themselves
_PAGE = bytes(4096)


@contextmanager
def ended_if(hopeless: Callable[[], UmbraError | None], end: Callable[[], None]) -> Iterator[None]:
    """Call `end` once, if the block goes on though it has been hopeless for some seconds.

    Args:
        hopeless: returns why the block cannot come to a good end, if so.
        end: makes the block end.
    """
    since: float | None = None
    called = False

    def look() -> None:
        nonlocal since, called
        if hopeless() is None:
            since = None
            return
        since = monotonic() if since is None else since
        if not called and monotonic() - since >= _PATIENCE:
            called = True
            end()

    with polled(look, _SECONDS):
        yield


def no_room(folders: Sequence[Path]) -> UmbraError | None:
    """Return in words which of the folders cannot be written to, if any, for want of room or else.

    Args:
        folders: that exist.
    """
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(_PAGE)
        except OSError as error:
            return UmbraError(
                f"nothing can be written in {folder} ({error.strerror}): free or repair the disk, "
                "then `umbra resume` goes on from what is durable"
            )
    return None
