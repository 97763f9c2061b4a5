"""What goes on without hope is ended; what is well, or ends by itself, is left alone."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from pipeline.cluster import abort as subject
from pipeline.cluster.abort import raised_if
from privacy.errors import BudgetRefused, DataError


@pytest.fixture(autouse=True)
def handler(monkeypatch):
    """Looks follow each other quickly; the caller's handler is in force again afterwards."""
    monkeypatch.setattr(subject, "_SECONDS", 0.001)
    before = signal.getsignal(signal.SIGUSR1)
    yield
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(subject, "monotonic", lambda: now.seconds)
    return now


class Hopeless:
    """Tells what it is set to; `seen` waits until it was asked twice again."""

    def __init__(self, reason=None):
        self.reason = reason
        self._asked = threading.Semaphore(0)

    def __call__(self):
        self._asked.release()
        return self.reason

    def seen(self):
        while self._asked.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self._asked.acquire(timeout=60)


def _wait():
    threading.Event().wait(60)
    raise AssertionError("nobody woke it")


def test_a_block_that_waits_is_woken_by_the_reason_itself():
    refused = Hopeless(BudgetRefused("refused"))
    with pytest.raises(BudgetRefused, match="refused") as told, raised_if(refused, patience=0):
        _wait()
    assert told.value.__cause__ is None and told.value.__suppress_context__


def test_of_two_the_one_that_has_a_reason_raises_it():
    fine, lost = Hopeless(), Hopeless()
    with pytest.raises(DataError, match="lost"), raised_if(lost, 0), raised_if(fine, 0):
        # Not before: a wake as the inner one comes is not heeded, and is not soon repeated.
        lost.reason = DataError("lost")
        _wait()
    with pytest.raises(DataError, match="lost"), raised_if(fine, 0), raised_if(lost, 0):
        _wait()


def test_everybody_has_some_seconds_to_end_by_themselves(clock):
    hopeless = Hopeless(DataError("refused"))
    with pytest.raises(DataError), raised_if(hopeless):
        hopeless.seen()
        clock.seconds += subject._PATIENCE - 0.1
        hopeless.seen()
        clock.seconds += 0.2
        _wait()
    with raised_if(hopeless):
        hopeless.seen()
        clock.seconds += subject._PATIENCE - 0.1
        hopeless.seen()


def test_hope_that_returns_begins_the_patience_anew(clock):
    hopeless = Hopeless(DataError("full"))
    with raised_if(hopeless):
        hopeless.seen()
        hopeless.reason = None
        hopeless.seen()
        clock.seconds += 2 * subject._PATIENCE
        hopeless.reason = DataError("full again")
        hopeless.seen()


@pytest.fixture
def interruptible():
    """What a shell starts in the background would ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_other_errors_stay_what_they_are(interruptible):
    with pytest.raises(ZeroDivisionError), raised_if(Hopeless(), patience=0):
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), raised_if(Hopeless(), patience=0):
        signal.raise_signal(signal.SIGINT)


def test_what_fails_for_the_reason_is_told_by_it(monkeypatch):
    woken = threading.Event()
    monkeypatch.setattr(subject.signal, "pthread_kill", lambda *_: woken.set())
    with pytest.raises(DataError, match="why"), raised_if(Hopeless(DataError("why")), patience=0):
        assert woken.wait(60)
        raise ConnectionError("a consequence")


def test_who_does_not_heed_is_woken_again(clock):
    hopeless, heard = Hopeless(), []
    with pytest.raises(DataError, match="why"), raised_if(hopeless, patience=0):
        for _ in range(2):
            with contextlib.suppress(subject._Woken):
                # Not before: a wake between the two blocks would end the outer one.
                hopeless.reason = DataError("why")
                clock.seconds += subject._PATIENCE
                _wait()
            heard.append(True)
        clock.seconds += subject._PATIENCE
        _wait()
    assert len(heard) == 2


def test_who_is_woken_in_coming_is_woken_again_at_the_next_look(monkeypatch, clock):
    periodic, heard = subject.run_periodically, []

    @contextlib.contextmanager
    def looking_at_once(look, seconds):
        look()
        with periodic(look, seconds):
            yield

    monkeypatch.setattr(subject, "run_periodically", looking_at_once)
    with pytest.raises(DataError, match="why"), raised_if(Hopeless(DataError("why")), patience=0):
        with pytest.raises(subject._Woken):
            _wait()
        heard.append(True)
        raise ConnectionError("a consequence")
    assert heard


def test_coming_and_going_are_not_broken_off(monkeypatch):
    passed = []

    @contextlib.contextmanager
    def run_periodically(look, seconds):
        signal.raise_signal(signal.SIGUSR1)
        passed.append("in")
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGUSR1)
            passed.append("out")

    monkeypatch.setattr(subject, "run_periodically", run_periodically)
    with raised_if(Hopeless()):
        passed.append("within")
    assert passed == ["in", "within", "out"]


LEAVING = """
import random, signal, threading, time
from pipeline.cluster import abort as watchdog
from privacy.errors import DataError

watchdog._SECONDS = 0.0005
others = threading.active_count()
ends = set()
for number in range(600):
    try:
        with watchdog.raised_if(lambda: DataError("hopeless"), patience=0):
            end = time.perf_counter() + random.random() * 0.002
            while time.perf_counter() < end:
                # Who holds the interpreter is woken as it leaves, who lets it go as it works.
                if number % 2:
                    time.sleep(0.00005)
        ends.add("by itself")
    except BaseException as error:
        ends.add(type(error).__name__)
assert ends == {"by itself", "DataError"}, ends
assert threading.active_count() == others
assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
"""


def test_a_block_that_ends_as_it_is_woken_is_left_in_good_order():
    """Without a thread that would wake nobody, of which the whole process would die."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["get", "wait"])
def test_who_waits_for_ray_is_woken(embedded, wait):
    ray = pytest.importorskip("ray")
    task = ray.remote(lambda: time.sleep(60)).remote()
    with pytest.raises(DataError, match="why"), raised_if(Hopeless(DataError("why")), patience=0):
        {"get": ray.get, "wait": ray.wait}[wait]([task])
    assert ray.wait([task], timeout=0)[0] == []  # before what it waited for was there
    ray.cancel(task, force=True)
