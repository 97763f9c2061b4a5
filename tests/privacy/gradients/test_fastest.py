"""The fastest way is found once for a kind of arguments, and ways that fail are left out."""

import time

import pytest
import torch

from privacy.gradients import fastest as module
from privacy.gradients.fastest import Fastest


class Way:
    """Doubles a tensor and counts its calls; may be slow or fail."""

    def __init__(self, seconds=0.0, error=None):
        self.seconds, self.error, self.calls = seconds, error, 0

    def __call__(self, x, factor):
        self.calls += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return x * factor


@pytest.mark.parametrize("fast_first", [True, False])
def test_the_fastest_is_called_from_then_on(fast_first):
    fast, slow = Way(), Way(0.1)
    fastest = Fastest(*((fast, slow) if fast_first else (slow, fast)))
    assert torch.equal(fastest(torch.ones(3, 2), 2), torch.full((3, 2), 2.0))
    tried = slow.calls
    calls = fast.calls
    # Another number of records is no other kind.
    assert torch.equal(fastest(torch.ones(5, 2), 2), torch.full((5, 2), 2.0))
    assert (fast.calls, slow.calls) == (calls + 1, tried)


@pytest.mark.parametrize(
    ("x", "factor"),
    [(torch.ones(3, 4), 2), (torch.ones(3, 2, dtype=torch.float64), 2), (torch.ones(3, 2), 3)],
)
def test_every_kind_is_tried_by_itself(x, factor):
    fast, slow = Way(), Way(0.01)
    fastest = Fastest(fast, slow)
    fastest(torch.ones(3, 2), 2)
    tried = slow.calls
    fastest(x, factor)
    assert slow.calls > tried


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), torch.OutOfMemoryError("full")])
def test_a_way_that_fails_is_left_out(error):
    failing, slow = Way(error=error), Way(0.01)
    fastest = Fastest(failing, slow)
    assert torch.equal(fastest(torch.ones(3), 2), torch.full((3,), 2.0))
    fastest(torch.ones(3), 2)
    assert failing.calls == 1


def test_where_all_fail_the_error_is_the_first_ones_and_none_is_chosen():
    full, other = Way(error=torch.OutOfMemoryError("full")), Way(error=RuntimeError("no kernel"))
    fastest = Fastest(full, other)
    with pytest.raises(torch.OutOfMemoryError):
        fastest(torch.ones(9), 2)
    full.error = None
    assert torch.equal(fastest(torch.ones(3), 2), torch.full((3,), 2.0))


def test_nothing_is_tried_while_a_graph_is_captured(monkeypatch):
    """Waiting for the device would end the capture, and every way would become part of it."""
    slow, fast = Way(0.01), Way()
    fastest = Fastest(slow, fast)
    with monkeypatch.context() as capture:
        capture.setattr(module, "_capturing", lambda device: True)
        assert torch.equal(fastest(torch.ones(3), 2), torch.full((3,), 2.0))
        assert (slow.calls, fast.calls) == (1, 0)
    fastest(torch.ones(3), 2)
    tried = slow.calls
    assert tried > 1
    monkeypatch.setattr(module, "_capturing", lambda device: True)
    fastest(torch.ones(3), 2)
    assert slow.calls == tried  # what was found before holds in a capture, too
