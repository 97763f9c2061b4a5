"""Ends what goes on without hope: Ray starts and waits again and again, for ever if need be."""

import math
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from types import FrameType, TracebackType

from pipeline.progress import run_periodically
from privacy.errors import UmbraError

_PAGE = bytes(4096)


def disk_write_error(folder: Path) -> UmbraError | None:
    """Return in words why nothing can be written, if so: the disk is full, or out of reach.

    Args:
        folder: of the run, on this machine; where Ray keeps its files is looked at, too.
    """
    where = folder
    try:
        _write(where)
        where = Path(tempfile.gettempdir())  # which fails itself where no such folder can be used
        _write(where)
    except OSError as error:
        return UmbraError(
            f"nothing can be written in {where} ({error.strerror}): free or repair the disk, "
            "then `umbra resume` goes on from what is durable"
        )
    return None


def _write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_PAGE)


_SECONDS = 3.0  # between two looks, which ask the cluster or write to the disk
_PATIENCE = 20.0  # seconds that everybody has to end by themselves


class _Woken(KeyboardInterrupt):
    """Breaks off whatever the main thread waits for; where Ray waits it heeds no other error."""


class raised_if(AbstractContextManager[None]):  # noqa: N801  # is used as a function
    """Raise what `hopeless` returns, if the block goes on though it has returned it for some time.

    It reaches the block, which is the main thread's, as a signal does: also where it waits for Ray.
    A block that ends just then has ended by itself.
    """

    def __init__(
        self, hopeless: Callable[[], UmbraError | None], patience: float | None = None
    ) -> None:
        """Look every few seconds, once the block has begun.

        Args:
            hopeless: returns why the block cannot come to a good end, if so; raises nothing.
            patience: seconds from when it first does; None takes 20.
        """
        self._hopeless = hopeless
        self._patience = _PATIENCE if patience is None else patience
        self._since: float | None = None
        self._woken = -math.inf
        self._reason: UmbraError | None = None
        self._polled = run_periodically(self._look, _SECONDS)

    def __enter__(self) -> None:
        """Begin to look."""
        self._waiting = threading.get_ident()
        self._before = signal.signal(signal.SIGUSR1, self._wake)
        self._polled.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look no longer, and tell the reason where the block did not end well."""
        self._polled.__exit__(None, None, None)
        signal.signal(signal.SIGUSR1, self._before)
        if error is not None and self._reason is not None:
            raise self._reason from None

    def _look(self) -> None:
        found, now = self._hopeless(), monotonic()
        self._since = None if found is None else self._since or now
        if self._since is None or now - self._since < self._patience:
            return
        # Again after a while: a call may be lost in a destructor, or what cleans up may hang.
        if now - self._woken >= _PATIENCE:
            self._reason, self._woken = found, now
            signal.pthread_kill(self._waiting, signal.SIGUSR1)

    def _wake(self, number: int, frame: FrameType | None) -> None:
        # Raised in the midst of coming or going, it would leave a thread behind that goes on waking
        # until the signal, which nobody expects by then, ends the process without a word.
        if self._on_the_threshold(frame):
            self._woken = -math.inf  # the next look does it again
        else:
            raise _Woken

    def _on_the_threshold(self, frame: FrameType | None) -> bool:
        threshold = raised_if.__enter__.__code__, raised_if.__exit__.__code__
        while frame is not None:
            if frame.f_code in threshold and frame.f_locals["self"] is self:
                return True
            frame = frame.f_back
        return False
