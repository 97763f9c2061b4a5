import pytest
import torch
from scipy import stats
from torch import nn

from privacy.gradients import ENGINES
from privacy.gradients.memory import (
    OOMBackoff,
    activation_bytes,
    balanced_microbatch,
    largest_batch,
    micro_batch,
)


def attempts(backoff, room):
    """Make attempts that need as much as a micro-batch until one fits; return what was tried."""
    tried = []
    while True:
        tried.append((backoff.engine.name, backoff.micro_batch))
        done = False
        with backoff:
            if backoff.micro_batch > room[backoff.engine.name]:
                raise torch.OutOfMemoryError("no room")
            done = True
        if done:
            return tried


def backoff_of(micro_batch):
    return OOMBackoff(ENGINES["record"], leaner=ENGINES["two-pass"], micro_batch=micro_batch)


def test_a_micro_batch_that_does_not_fit_is_halved_and_stays_so():
    backoff, room = backoff_of(16), {"record": 3}
    assert attempts(backoff, room) == [("record", size) for size in (16, 8, 4, 2)]
    assert attempts(backoff, room) == [("record", 2)]


def test_the_leaner_engine_takes_over_where_one_record_is_too_many():
    backoff, room = backoff_of(2), {"record": 0, "two-pass": 1}
    assert attempts(backoff, room) == [("record", 2), ("record", 1), ("two-pass", 1)]
    assert attempts(backoff, room) == [("two-pass", 1)]


def test_a_single_record_that_does_not_fit_raises():
    with pytest.raises(torch.OutOfMemoryError):
        attempts(backoff_of(4), {"record": 0, "two-pass": 0})


def test_other_errors_pass_through_the_backoff():
    backoff = backoff_of(4)
    with pytest.raises(ValueError, match="wrong"), backoff:
        raise ValueError("wrong")
    assert (backoff.engine.name, backoff.micro_batch) == ("record", 4)


def test_activation_bytes_leave_out_the_weights():
    model = nn.Sequential(nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 1))
    x = torch.zeros(3, 100, device="meta", requires_grad=True)
    # Of each row: the input, and the output of tanh.
    assert activation_bytes(model.to("meta"), (x,)) == 4 * 3 * (100 + 50)


def test_the_micro_batch_follows_from_public_sizes():
    model, inputs = (
        nn.Linear(100, 1, device="meta"),
        (torch.zeros(1, 100, device="meta", requires_grad=True),),
    )
    record = 8 * 400 + 4 * 101
    assert micro_batch(model, inputs, 8, 64, "cpu", limit=10 * record) == 10
    assert micro_batch(model, inputs, 8, 64, "cpu", limit=2**40) == 256
    assert micro_batch(model, inputs, 32, 784, "cpu", limit=2**40) == 6
    assert micro_batch(model, inputs, 8, 64, "cuda", limit=1000 * record) == 1000
    assert micro_batch(model, inputs, 8, 64, "cpu", limit=1) == 1


@pytest.mark.parametrize(
    ("expected", "records", "largest"),
    [(64, 10**4, 88), (64, 70, 70), (60_000, 60_000, 60_000), (0.5, 9, 3), (1, 1, 1), (1e-9, 5, 1)],
)
def test_the_largest_batch_is_three_deviations_above_and_at_most_all_records(
    expected, records, largest
):
    assert largest_batch(expected, records) == largest


@pytest.mark.parametrize("expected", [16, 64, 500, 4096])
def test_few_batches_exceed_the_largest(expected):
    exceeded = stats.binom.sf(largest_batch(expected, 10**6), 10**6, expected / 10**6)
    assert 1e-4 < exceeded < 3e-3


def test_micro_batches_fill_a_large_batch_evenly():
    for largest in range(1, 200):
        for fitting in range(1, 250):
            size = balanced_microbatch(fitting, largest)
            count = -(-largest // size)
            assert 1 <= size <= fitting
            # No more of them than of the largest that fit, and less than one empty row in each.
            assert count == -(-largest // fitting)
            assert 0 <= size * count - largest < count
