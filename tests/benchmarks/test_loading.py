"""A worker keeps its share of a set that nobody holds whole."""

import numpy as np

from benchmarks import loading


def test_the_set_is_the_same_at_every_call_and_no_part_is_like_another():
    one, other = (np.concatenate([part.values for part in loading.made(6000)]) for _ in range(2))
    assert np.array_equal(one, other)
    assert len(np.unique(one.reshape(6000, -1)[:, :16], axis=0)) == 6000


def test_a_worker_trains_on_its_share():
    kept, peak = loading.train(300, 2)
    assert 100 < kept < 200
    assert peak > 2**20
