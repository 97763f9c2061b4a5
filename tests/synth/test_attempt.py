import pickle

import numpy as np
import pytest
import torch

from privacy.collective import SingleProcess
from privacy.errors import InvalidRequest
from synth.methods.base import Attempt

KEY = bytes(range(32))


def draws(attempt):
    return attempt.noise().standard_normal(1000)


class TestNoise:
    def test_in_earnest_is_the_operating_systems(self):
        attempt = Attempt(1, KEY)
        assert not attempt.noise().void
        assert not np.array_equal(draws(attempt), draws(attempt))

    def test_a_seed_makes_it_reproducible_and_void(self):
        assert Attempt(1, KEY, seed=0).noise().void
        assert np.array_equal(draws(Attempt(1, KEY, seed=4)), draws(Attempt(1, KEY, seed=4)))

    @pytest.mark.parametrize(
        "other", [Attempt(2, KEY, seed=4), Attempt(1, KEY, seed=5), Attempt(1, KEY[::-1], seed=4)]
    )
    def test_another_attempt_seed_or_run_has_another(self, other):
        mine, theirs = draws(Attempt(1, KEY, seed=4)), draws(other)
        assert abs(np.corrcoef(mine, theirs)[0, 1]) < 6 / np.sqrt(1000)

    @pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
    def test_a_seed_is_a_whole_number(self, seed):
        with pytest.raises(InvalidRequest):
            Attempt(1, KEY, seed=seed).noise()


class TestGenerator:
    def test_is_a_function_of_key_and_number(self):
        def first(attempt):
            return torch.rand(4, generator=attempt.generator())

        assert torch.equal(first(Attempt(1, KEY)), first(Attempt(1, KEY)))
        assert not torch.equal(first(Attempt(1, KEY)), first(Attempt(2, KEY)))
        assert not torch.equal(first(Attempt(1, KEY)), first(Attempt(1, KEY[::-1])))

    def test_leaves_torchs_own_generator_alone(self):
        before = torch.get_rng_state()
        Attempt(1, KEY).generator()
        assert torch.equal(torch.get_rng_state(), before)


def test_the_key_is_not_shown():
    shown = repr(Attempt(3, KEY))
    assert "number=3" in shown
    assert "key" not in shown
    assert repr(KEY) not in shown


@pytest.mark.parametrize("key", [b"", bytes(31), "0" * 32])
def test_a_key_of_another_length_is_refused(key):
    with pytest.raises(InvalidRequest, match="32 bytes"):
        Attempt(1, key).generator()
    with pytest.raises(InvalidRequest, match="32 bytes"):
        Attempt(1, key, seed=1).noise()


def test_holds_no_stream_that_could_be_carried_on():
    """An attempt may travel to a worker; its noise streams may not."""
    carried = pickle.loads(pickle.dumps(Attempt(1, KEY)))
    assert carried == Attempt(1, KEY)
    with pytest.raises(TypeError):
        pickle.dumps(carried.noise())


def test_two_starts_with_one_number_draw_different_masks() -> None:
    """A process thought dead and its successor may both be told to be attempt 2."""
    key = bytes(range(32))
    first = Attempt.start(2, key, None, SingleProcess())
    second = Attempt.start(2, key, None, SingleProcess())
    assert first.number == second.number == 2
    assert first.key != second.key
    assert first.key != key


def test_a_seed_repeats_a_start_whatever_the_run() -> None:
    first = Attempt.start(1, bytes(32), 7, SingleProcess())
    second = Attempt.start(1, bytes(range(32)), 7, SingleProcess())
    assert first == second
    assert first != Attempt.start(1, bytes(32), 8, SingleProcess())
    assert first.noise().void
