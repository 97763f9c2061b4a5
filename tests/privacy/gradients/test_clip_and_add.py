"""Rows that are no records add exactly nothing, and leave the others what they were."""

import math

import pytest
import torch

from privacy.gradients.clip_and_add import add_clipped

C = 0.7
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
    norms = add_clipped(found, gradients, C, present)
    kept = add_clipped(expected, {n: g[present] for n, g in gradients.items()}, C)
    assert torch.equal(norms[present], kept)
    for name, total in found.items():
        # To the last bit but for the order of the sum, which the zeros between may change.
        assert torch.allclose(total, expected[name], rtol=1e-15, atol=0)
    nobody = zeros()
    add_clipped(nobody, gradients, C, torch.zeros(5, dtype=torch.bool))
    assert not any(total.any() for total in nobody.values())
