import pytest
import torch
from scipy import stats
from torch import nn

from privacy.gradients import ENGINES
from privacy.gradients.memory import (
    WithinMemory,
    activation_bytes,
    balanced_microbatch,
    largest_batch,
    micro_batch,
)

RECORDS = (torch.arange(12.0).reshape(6, 2),)


def loss(model, x):
    return model(x).square().sum()


class Crowded:
    """Runs out of memory above so many records, as a GPU does."""

    name = "crowded"

    def __init__(self, room):
        self.room, self.asked = room, []

    def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
        self.asked.append(micro_batch)
        if micro_batch > self.room:
            raise torch.OutOfMemoryError("no room")
        return ENGINES["record"].sum_of_clipped(model, loss, records, clip_norm, micro_batch)


def test_what_does_not_fit_is_halved_and_remembered():
    crowded, model = Crowded(room=3), nn.Linear(2, 2)
    engine = WithinMemory(crowded, Crowded(room=0))
    found = engine.sum_of_clipped(model, loss, RECORDS, 1.0, 16)
    assert crowded.asked == [16, 8, 4, 2]
    expected = ENGINES["record"].sum_of_clipped(model, loss, RECORDS, 1.0, 16)
    assert all(torch.equal(found.sums[name], total) for name, total in expected.sums.items())
    engine.sum_of_clipped(model, loss, RECORDS, 1.0, 16)
    engine.sum_of_clipped(model, loss, RECORDS, 1.0, 1)
    assert crowded.asked[4:] == [2, 1]
    assert engine.name == "crowded"


def test_a_leaner_engine_takes_over_where_one_record_is_too_many():
    crowded, leaner, model = Crowded(room=0), Crowded(room=1), nn.Linear(2, 2)
    engine = WithinMemory(crowded, leaner)
    found = engine.sum_of_clipped(model, loss, RECORDS, 1.0, 4)
    assert (crowded.asked, leaner.asked) == ([4, 2, 1], [1])
    expected = ENGINES["record"].sum_of_clipped(model, loss, RECORDS, 1.0, 4)
    assert all(torch.equal(found.sums[name], total) for name, total in expected.sums.items())
    engine.sum_of_clipped(model, loss, RECORDS, 1.0, 4)
    assert (crowded.asked[3:], leaner.asked[1:]) == ([], [1])


def test_a_record_that_does_not_fit_by_itself_is_told():
    engine = WithinMemory(Crowded(room=0), Crowded(room=0))
    with pytest.raises(torch.OutOfMemoryError):
        engine.sum_of_clipped(nn.Linear(2, 2), loss, RECORDS, 1.0, 4)


def test_bytes_are_those_of_the_activations_and_not_of_the_weights():
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
def test_the_largest_batch_is_three_deviations_above_and_never_all_and_more(
    expected, records, largest
):
    assert largest_batch(expected, records) == largest


@pytest.mark.parametrize("expected", [16, 64, 500, 4096])
def test_hardly_a_batch_is_larger_than_the_largest(expected):
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
