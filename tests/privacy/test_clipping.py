import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from privacy.clipping import add_clipped_vector, clip_factors, sum_clipped
from privacy.errors import InvalidRequest
from privacy.validation import positive_number

CLIP_NORMS = st.floats(1e-3, 1e3)
ANY_FLOAT32 = st.floats(width=32, allow_nan=True, allow_infinity=True)


def test_small_norms_are_left_alone_and_large_ones_scaled():
    norms = torch.tensor([0.0, 1e-30, 0.5, 2.0, 4.0, 1e30], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 2e-30], dtype=torch.float64)
    factors = clip_factors(norms, 2.0)
    assert factors.dtype == torch.float64
    assert torch.allclose(factors, expected, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_norms_that_are_not_finite_get_zero(norm):
    assert clip_factors(torch.tensor([norm, 1.0]), 1.0).tolist() == pytest.approx([0.0, 1.0])
    assert clip_factors(torch.tensor([norm]), 1.0).item() == 0.0


@given(st.floats(1e-10, 1e10), CLIP_NORMS, st.integers(1, 2000), st.integers(0, 2**32))
def test_a_clipped_vector_never_exceeds_the_clip_norm(scale, C, size, seed):
    vector = scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    for norm in (vector.double().norm(), vector.norm()):
        factor = clip_factors(norm[None], C)
        exact = sum_clipped(vector[None], factor)
        clipped = math.sqrt(math.fsum(x * x for x in exact.tolist()))
        limit = C if norm.dtype == torch.float64 else C * (1 + 1e-6)
        assert clipped <= limit
        assert clipped == pytest.approx(min(C, float(vector.double().norm())), rel=1e-6)
        rounded = (vector * factor.float()).double()
        assert rounded.norm().item() <= C * (1 + 1e-6)


@given(
    npst.arrays("float32", (3, 8), elements=ANY_FLOAT32),
    CLIP_NORMS,
)
def test_no_record_moves_a_sum_further_than_the_clip_norm(array, C):
    vectors = torch.from_numpy(array)
    norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    factors = clip_factors(norms, C)
    everyone = sum_clipped(vectors, factors)
    for i in range(3):
        others = [j for j in range(3) if j != i]
        moved = (everyone - sum_clipped(vectors[others], factors[others])).norm()
        assert moved <= C * (1 + 1e-6)
        if not vectors[i].isfinite().all():
            assert moved == 0.0


def test_a_record_left_out_adds_exactly_zero():
    vectors = torch.tensor([[math.nan, 1.0], [math.inf, -math.inf]])
    assert sum_clipped(vectors, torch.zeros(2, dtype=torch.float64)).tolist() == [0.0, 0.0]


@given(npst.arrays("float64", 8, elements=st.floats()), CLIP_NORMS)
def test_a_record_is_added_as_it_is_summed(array, C):
    vector, begun = torch.from_numpy(array), torch.arange(8.0, dtype=torch.float64)
    factors = clip_factors(torch.linalg.vector_norm(vector)[None], C)
    clipped, total = sum_clipped(vector[None], factors), begun.clone()
    add_clipped_vector(total, vector, factors[0])
    # One rounding of the product and one of the sum, or of both together, on either side.
    rounding = 2.0**-52 * (clipped.abs() + begun)
    assert ((total - (begun + clipped)).abs() <= rounding).all()
    if not factors.any():
        assert torch.equal(total, begun)


def test_sums_are_made_in_float64():
    vectors = torch.tensor([[1.0], [2.0**-40]])
    assert sum_clipped(vectors, torch.ones(2, dtype=torch.float64)).item() == 1 + 2.0**-40


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_sums_keep_the_shape_of_a_record(shape):
    vectors = torch.randn(5, *shape)
    factors = torch.rand(5, dtype=torch.float64)
    expected = sum(f * v.double() for f, v in zip(factors, vectors, strict=True))
    assert torch.allclose(sum_clipped(vectors, factors), expected)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, 5e-324, True, "1", None])
def test_impossible_clip_norms_are_refused(value):
    with pytest.raises(InvalidRequest, match="the clip norm"):
        clip_factors(torch.ones(1), value)


def test_positive_numbers_come_back_as_float():
    assert positive_number("it", 2) == 2.0
    assert isinstance(positive_number("it", 2), float)
