"""All ways to a convolution's weight gradients against autograd, record by record in float64."""

import pytest
import torch
from torch.nn import functional

from privacy.gradients.grad_samplers.convolution import grouped, weight_gradient

B, K, C, D = 3, 2, 4, 5

# Kernel, stride, padding, dilation, height and width.
SHAPES = [
    ((3, 3), (1, 1), (1, 1), (1, 1), (8, 8)),
    ((3, 3), (1, 1), (0, 0), (1, 1), (7, 5)),
    ((3, 2), (1, 1), (2, 1), (1, 1), (4, 9)),
    ((3, 3), (1, 1), (2, 2), (2, 2), (6, 6)),
    ((2, 3), (1, 1), (0, 3), (3, 1), (7, 4)),
    ((1, 1), (1, 1), (0, 0), (1, 1), (6, 5)),
    ((1, 1), (1, 1), (1, 1), (1, 1), (3, 3)),
    ((4, 4), (1, 1), (0, 0), (1, 1), (4, 4)),
]
STRIDED = [
    ((3, 3), (2, 2), (1, 1), (1, 1), (8, 8)),
    ((1, 1), (2, 1), (0, 0), (1, 1), (5, 6)),
]


def made(kernel, stride, padding, dilation, size):
    """Output gradients, inputs, shape of the weight, where, and the gradients by autograd."""
    generator = torch.Generator().manual_seed(0)
    where = (stride, padding, dilation)
    x = torch.randn(B, K, C, *size, generator=generator, dtype=torch.float64)
    weight = torch.zeros(D, C, *kernel, dtype=torch.float64, requires_grad=True)
    outputs = [functional.conv2d(one, weight, None, *where) for one in x]
    g = torch.randn(B, *outputs[0].shape, generator=generator, dtype=torch.float64)
    expected = [
        torch.autograd.grad(out, weight, one)[0] for out, one in zip(outputs, g, strict=True)
    ]
    return g, x, weight.shape, where, torch.stack(expected)


@pytest.mark.parametrize("shapes", SHAPES + STRIDED, ids=str)
@pytest.mark.parametrize("way", [weight_gradient, grouped])
def test_every_records_gradient_is_autograds(way, shapes):
    *args, expected = made(*shapes)
    torch.testing.assert_close(way(*args), expected, rtol=1e-12, atol=1e-12)


def test_a_record_that_is_not_finite_does_not_reach_the_others():
    g, x, weight, where, expected = made(*SHAPES[0])
    x[1] = torch.nan
    found = grouped(g, x, weight, where)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=1e-12)
