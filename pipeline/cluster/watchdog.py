"""Ends what goes on without hope: Ray starts and waits again and again, for ever if need be."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NoReturn

from pipeline.polling import polled
from privacy.errors import UmbraError

_SECONDS = 1.0  # between two looks
_PATIENCE = 20.0  # seconds that everybody has to end by themselves


class _Woken(KeyboardInterrupt):
    """Breaks off whatever the main thread waits for; where Ray waits it heeds no other error."""


@contextmanager
def raised_if(
    hopeless: Callable[[], UmbraError | None], patience: float | None = None
) -> Iterator[None]:
    """Raise what `hopeless` returns, if the block goes on though it has returned it for some time.

    It reaches the block, which is the main thread's, as a signal does: also where it waits for Ray.

    Args:
        hopeless: returns why the block cannot come to a good end, if so; raises nothing.
        patience: seconds from when it first does; None takes 20.
    """
    patience = _PATIENCE if patience is None else patience
    since: float | None = None
    woken = -math.inf
    reason: UmbraError | None = None
    waiting = threading.get_ident()

    def look() -> None:
        nonlocal since, woken, reason
        found, now = hopeless(), monotonic()
        since = None if found is None else since or now
        # Again after a while: a call may be lost in a destructor, or what cleans up may hang.
        if since is not None and now - since >= patience and now - woken >= _PATIENCE:
            reason, woken = found, now
            signal.pthread_kill(waiting, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, _wake)
    try:
        with polled(look, _SECONDS):
            yield
    except BaseException:
        if reason is None:
            raise
        raise reason from None
    finally:
        signal.signal(signal.SIGUSR1, before)


def _wake(number: int, frame: object) -> NoReturn:
    raise _Woken
