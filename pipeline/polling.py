"""Looking at something again and again, in a thread of its own, while a block does its work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def polled(look: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call `look` every so many seconds while the block runs; the first time after as many.

    What `look` raises would end the looking and be written to the terminal: it must raise nothing.
    The block's end waits for a call that is under way.
    """
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            look()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
