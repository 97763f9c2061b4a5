"""Warm-up, capture and what comes of their failures, on a stand-in for `torch.cuda`.

`gradients/test_graph.py` tests on a real GPU, where there is one, that graphs give what kernels do.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from privacy.cuda_graph import capture

GPU = torch.device("cuda", 1)


class Refused(RuntimeError):
    """Raised by a device that cannot capture."""


class Device:
    """Logs calls, and which stream is current.

    Attributes:
        at_end: what the end of a capture raises.
    """

    def __init__(self, monkeypatch, at_end=None):
        self.log, self.at_end, self.current = [], at_end, "own"
        cuda = SimpleNamespace(
            device=self._device,
            current_stream=lambda: self._stream(self.current),
            set_stream=lambda stream: setattr(self, "current", stream.name),
            Stream=lambda: self._stream("aside"),
            stream=self._on,
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            graph=self._capture,
        )
        monkeypatch.setattr(torch, "cuda", cuda)

    def _stream(self, name):
        wait = lambda other: self.log.append(f"{name} waits for {other.name}")  # noqa: E731
        return SimpleNamespace(name=name, wait_stream=wait)

    @contextmanager
    def _device(self, device):
        self.log.append(f"on {device}")
        yield
        self.log.append(f"off {device}")

    @contextmanager
    def _on(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _capture(self, graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.current = "capture"
        try:
            yield
        finally:
            # As torch does: where the end fails, the stream of the capture stays.
            if self.at_end is not None:
                raise self.at_end
            self.current = "own"

    def work(self):
        self.log.append(f"work on {self.current}")


WARM_UP = ["aside waits for own", *["work on aside"] * 3, "own waits for aside"]


def test_a_cpu_runs_the_work_itself():
    def work():
        pass

    assert capture(work, torch.device("cpu")) is work
    assert capture(work, torch.device("meta")) is work


def test_a_gpu_warms_up_on_a_side_stream_captures_and_replays(monkeypatch):
    device = Device(monkeypatch)
    replay = capture(device.work, GPU)
    assert device.log == ["on cuda:1", *WARM_UP, "work on capture", "off cuda:1"]
    assert device.current == "own"
    replay()
    replay()
    assert device.log[-2:] == ["replay", "replay"]
    assert device.log.count("work on capture") == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ValueError("wrong")])
def test_work_that_fails_in_warm_up_is_waited_for(monkeypatch, error):
    device = Device(monkeypatch)

    def fails():
        device.work()
        raise error

    with pytest.raises(type(error)):
        capture(fails, GPU)
    assert device.log[-3:] == ["aside waits for own", "work on aside", "own waits for aside"]
    assert device.current == "own"


@pytest.mark.parametrize("at_end", [None, Refused("capture was invalidated")])
def test_running_out_of_memory_in_a_capture_raises_that_error(monkeypatch, at_end):
    """Though the end of a capture that went wrong may fail, too, and with another error."""
    device = Device(monkeypatch, at_end)

    def fails():
        device.work()
        if device.current == "capture":
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        capture(fails, GPU)
    assert device.current == "own"


def test_work_that_cannot_be_captured_runs_with_a_warning(monkeypatch):
    device = Device(monkeypatch, Refused("numbers of a record: 0.25"))
    with pytest.warns(RuntimeWarning, match="kernel by kernel.*Refused$"):
        replay = capture(device.work, GPU)
    assert device.current == "own"
    replay()
    assert device.log[-1] == "work on own"


def test_errors_that_are_not_the_devices_are_raised(monkeypatch):
    device = Device(monkeypatch)

    def wrong():
        if device.current == "capture":
            raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        capture(wrong, GPU)
