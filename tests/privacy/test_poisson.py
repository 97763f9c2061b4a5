import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.errors import InvalidRequest
from privacy.poisson import PoissonSampler

KEY = bytes(range(32))
N, T, Q = 3000, 400, 0.1
IDS = np.arange(N)


def masks_of(q, steps=T, key=KEY, attempt=0):
    sampler = PoissonSampler(key, attempt, q)
    return np.array([sampler.mask(step, IDS) for step in range(steps)])


def two_sided(p):
    return 2 * min(p, 1 - p)


def p_values(masks, q):
    """How well masks [T, N] fit independent coins of probability q, from four sides."""
    steps, n = masks.shape
    variance = q * (1 - q)
    both = (masks[1:] & masks[:-1]).sum()
    pairs = (steps - 1) * n
    # Neighbouring pairs share a coin: Var = pairs q^2 (1 - q^2) + 2 (pairs - n) (q^3 - q^4).
    spread = math.sqrt(pairs * q**2 * (1 - q**2) + 2 * (pairs - n) * (q**3 - q**4))
    chi_batch = ((masks.sum(axis=1) - n * q) ** 2 / (n * variance)).sum()
    chi_record = ((masks.sum(axis=0) - steps * q) ** 2 / (steps * variance)).sum()
    total = (masks.sum() - steps * n * q) / math.sqrt(steps * n * variance)
    return {
        "total": two_sided(stats.norm.cdf(total)),
        "batch sizes": two_sided(stats.chi2.cdf(chi_batch, steps)),
        "records": two_sided(stats.chi2.cdf(chi_record, n)),
        "steps": two_sided(stats.norm.cdf((both - pairs * q**2) / spread)),
    }


@pytest.mark.parametrize("q", [0.003, 0.1, 0.5, 0.97])
def test_masks_are_independent_coins(q):
    assert min(p_values(masks_of(q), q).values()) > 1e-3


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_the_check_detects_another_probability(factor):
    p = p_values(masks_of(factor * Q), Q)
    assert max(p["total"], p["batch sizes"], p["records"], p["steps"]) < 1e-6


def test_the_check_detects_batches_of_one_size():
    rng = np.random.default_rng(0)
    shuffled = np.array([rng.permutation(N) < N * Q for _ in range(T)])
    p = p_values(shuffled, Q)
    assert p["total"] > 0.9
    assert p["batch sizes"] < 1e-12


def test_the_check_detects_shuffled_epochs():
    rng = np.random.default_rng(0)
    epochs = int(T * Q)
    order = np.concatenate([rng.permutation(N).reshape(-1, int(N * Q)) for _ in range(epochs)])
    shuffled = np.zeros((T, N), bool)
    np.put_along_axis(shuffled, order, True, axis=1)
    assert p_values(shuffled, Q)["records"] < 1e-12


def test_the_check_detects_a_mask_used_twice():
    assert p_values(np.repeat(masks_of(Q, T // 2), 2, axis=0), Q)["steps"] < 1e-12


@given(
    st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=50),
    st.integers(0, 2**40),
    st.data(),
)
def test_a_decision_does_not_depend_on_the_worker(ids, step, data):
    sampler = PoissonSampler(KEY, 3, 0.5)
    together = dict(zip(ids, sampler.mask(step, np.array(ids, np.int64)).tolist(), strict=True))
    part = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
    alone = pickle.loads(pickle.dumps(sampler)).mask(step, np.array(part, np.int64))
    assert alone.tolist() == [together[i] for i in part]


def test_the_mask_is_a_function_of_key_attempt_and_step():
    base = PoissonSampler(KEY, 0, 0.5).mask(7, IDS)
    assert np.array_equal(base, PoissonSampler(KEY, 0, 0.5).mask(7, IDS))
    for other in (
        PoissonSampler(KEY, 0, 0.5).mask(8, IDS),
        PoissonSampler(KEY, 1, 0.5).mask(7, IDS),
        PoissonSampler(KEY, 7, 0.5).mask(0, IDS),
        PoissonSampler(KEY[::-1], 0, 0.5).mask(7, IDS),
    ):
        agree = (base == other).sum()
        assert two_sided(stats.binom.cdf(agree, N, 0.5)) > 1e-4


def test_the_mask_of_a_release_never_changes():
    """A resumed run must draw the masks that the version that started it would have drawn."""
    mask = PoissonSampler(KEY, 1, 0.5).mask(2, np.arange(64))
    assert np.packbits(mask).tobytes().hex() == "3187726d78d445ee"


def test_a_larger_probability_only_adds_records():
    assert not (masks_of(0.1, 5) & ~masks_of(0.2, 5)).any()


def test_probability_one_takes_every_record():
    assert PoissonSampler(KEY, 0, 1.0).mask(0, IDS).all()
    assert PoissonSampler(KEY, 0, 1).mask(0, IDS).all()


@pytest.mark.parametrize("q", [math.nextafter(1.0, 0.0), 2.0**-64, 1 / 15])
def test_extreme_probabilities_have_a_threshold(q):
    assert PoissonSampler(KEY, 0, q).mask(0, IDS).dtype == bool


def test_the_mask_of_no_records_is_empty():
    assert PoissonSampler(KEY, 0, 0.5).mask(0, np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize(
    "q", [0.0, -0.1, 1.0000001, 2, math.nan, math.inf, -math.inf, 5e-324, 1e-20, True, "0.1", None]
)
def test_impossible_probabilities_are_refused(q):
    with pytest.raises(InvalidRequest, match="sampling probability"):
        PoissonSampler(KEY, 0, q)


@pytest.mark.parametrize("attempt", [-1, 1.5, True, 2**64])
def test_impossible_attempts_are_refused(attempt):
    with pytest.raises(InvalidRequest, match="attempt"):
        PoissonSampler(KEY, attempt, 0.5)


@pytest.mark.parametrize("step", [-1, 1.5, True, None])
def test_impossible_steps_are_refused(step):
    with pytest.raises(InvalidRequest, match="step"):
        PoissonSampler(KEY, 0, 0.5).mask(step, IDS)


@pytest.mark.parametrize(
    "ids", [np.array([-1]), np.array([0.5]), np.array([1], np.int32), np.zeros((2, 2), np.int64)]
)
@pytest.mark.parametrize("q", [0.5, 1.0])
def test_impossible_ids_are_refused(ids, q):
    with pytest.raises(InvalidRequest, match="record ids"):
        PoissonSampler(KEY, 0, q).mask(0, ids)


def test_the_key_is_checked_and_not_shown():
    with pytest.raises(InvalidRequest, match="32 bytes"):
        PoissonSampler(b"short", 0, 0.5)
    assert "key" not in repr(PoissonSampler(KEY, 0, 0.5))
