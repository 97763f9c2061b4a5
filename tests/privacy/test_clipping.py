import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from privacy.clipping import (
    GradientMatrix,
    add_clipped,
    add_clipped_vector,
    clip_factors,
    sum_clipped,
    zeros_in_one_piece,
)
from privacy.errors import InvalidRequest

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
    add_clipped_vector(total, vector, C)
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


N = 6


def gradients(rows):
    """One parameter large enough to be summed alone, two small ones, one without dimensions."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"large": (rows, 32, 3, 3), "small": (4, 3, 2), "bias": (4,), "scale": ()}
    return {n: torch.randn(N, *s, generator=generator) for n, s in shapes.items()}


def in_memory_order(tensor):
    """The same numbers, the second dimension last in memory."""
    return tensor.movedim(2, -1).contiguous().movedim(-1, 2) if tensor.ndim > 2 else tensor


@pytest.mark.parametrize("rows", [2, 100])
def test_sums_are_of_the_parameters_shape_whatever_the_order_in_memory(rows):
    plain = gradients(rows)
    ordered = {name: in_memory_order(g) for name, g in plain.items()}
    assert not ordered["large"].is_contiguous()
    norms = torch.stack([g.double().reshape(N, -1).norm(dim=1) for g in plain.values()]).norm(dim=0)
    C = norms.median().item()
    factors = (C / norms).clamp(max=1.0)
    sums = {n: torch.zeros(g.shape[1:], dtype=torch.float64) for n, g in plain.items()}
    add_clipped(sums, ordered, C)
    for name, g in plain.items():
        expected = torch.tensordot(factors, g.double(), dims=1)
        assert torch.allclose(sums[name], expected, rtol=1e-9, atol=1e-9)
        one = {name: torch.zeros_like(expected)}
        matrix = GradientMatrix.of(name, ordered[name])
        matrix.add(one, factors)
        assert torch.allclose(one[name], expected, rtol=1e-12, atol=1e-12)
        squares = g.double().reshape(N, -1).square().sum(1)
        assert torch.allclose(matrix.squared_norms(), squares, rtol=1e-12)


# The second is so large that it is a matrix of its own.
SHAPES = {"small": (3,), "large": (2**17,)}


def zeros():
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf, 1e30, 1e-30])
def test_rows_that_are_not_present_add_exactly_nothing(fill):
    generator = torch.Generator().manual_seed(0)
    gradients = {name: torch.randn(5, *s, generator=generator) for name, s in SHAPES.items()}
    present = torch.tensor([True, False, True, False, False])
    for gradient in gradients.values():
        gradient[~present] = fill
    found, expected = zeros(), zeros()
    add_clipped(found, gradients, 0.7, present)
    add_clipped(expected, {n: g[present] for n, g in gradients.items()}, 0.7)
    for name, total in found.items():
        # To the last bit but for the order of the sum, which the zeros between may change.
        assert torch.allclose(total, expected[name], rtol=1e-15, atol=0)
    nobody = zeros()
    add_clipped(nobody, gradients, 0.7, torch.zeros(5, dtype=torch.bool))
    assert not any(total.any() for total in nobody.values())


def test_zeros_are_one_vector_whose_parts_lie_like_the_parameters():
    parameters = {
        "plain": torch.ones(2, 3),
        "channels last": torch.ones(4, 5, 3, 3).to(memory_format=torch.channels_last),
        "gaps": torch.ones(4, 6)[:, ::2],
        "transposed": torch.ones(3, 5).T,
        "scalar": torch.ones(()),
    }
    vector, parts = zeros_in_one_piece(parameters)
    assert vector.dtype == torch.float64 and not vector.any()
    assert {name: part.shape for name, part in parts.items()} == {
        name: parameter.shape for name, parameter in parameters.items()
    }
    for name in parameters.keys() - {"gaps"}:
        assert parts[name].stride() == parameters[name].stride()
    for part in parts.values():
        part.add_(1)
    assert torch.equal(vector, torch.ones_like(vector))  # every number is one part's and only once
