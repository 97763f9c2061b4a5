"""Sums lie in one piece of memory, each in its parameter's order."""

import torch

from privacy.gradients.base import zeros_in_one_piece


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
