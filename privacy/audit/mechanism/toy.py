"""Toy records whose gradients are known: what a step did can be read off its result.

The network is linear and its loss is its output, so a record's gradient is the record itself.
Record i has coordinate i of every layer to itself and a norm far above C: clipped once and over
all layers jointly, it adds C / sqrt(layers) there and nothing elsewhere, whatever the others are.
The idle coordinates at the end of every layer belong to no record and show the noise alone.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from privacy.dp_sgd import DPSGD
from privacy.gradients import ModelCall

LAYERS = 3
IDLE = 8

_EXPECTED_BATCH = 2
_FEWEST, _MOST = 8, 512


def toy_size(q: float) -> int:
    """Return how many toy records make a batch of about two, between 8 and 512."""
    return int(min(max(np.ceil(_EXPECTED_BATCH / q), _FEWEST), _MOST))


class Readout(nn.Module):
    """Several layers that are each multiplied with their part of the record: x [K, layers, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(
            [torch.zeros(width, dtype=torch.float64) for _ in range(LAYERS)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [K]."""
        parts = [x[:, i] @ layer for i, layer in enumerate(self.layers)]
        return torch.stack(parts).sum(dim=0)


def mean_output(model: ModelCall, views: Tensor) -> Tensor:
    """Return the loss of one record, the mean over its views [K, layers, width]."""
    return model(views).mean()


@dataclass(frozen=True)
class Toy:
    """Toy records of one mechanism.

    Attributes:
        dpsgd: the mechanism; its number of records is that of the toys.
        views: K, copies of a record, which point in different directions.
    """

    dpsgd: DPSGD
    views: int

    @property
    def canary(self) -> int:
        """The record whose presence is to be found out; not rank 0's where there are two."""
        return self.dpsgd.records - 1

    @cached_property
    def model(self) -> Readout:
        """The network; nothing trains it."""
        return Readout(self.dpsgd.records + IDLE)

    @cached_property
    def records(self) -> Tensor:
        """Views [N, K, layers, width], float64.

        Norms go from 3 C to 30,000 C. Views come in pairs that stray from their mean as far as it
        is long, on idle coordinates and in opposite directions.
        """
        n, clip_norm = self.dpsgd.records, self.dpsgd.clip_norm
        norms = 3 * clip_norm * 10.0 ** (torch.arange(n, dtype=torch.float64) % 5)
        views = torch.zeros(n, self.views, LAYERS, n + IDLE, dtype=torch.float64)
        every = torch.arange(n)
        views[every, :, :, every] = (norms / LAYERS**0.5)[:, None, None]
        stray = (norms / (LAYERS * IDLE) ** 0.5)[:, None, None, None]
        paired = self.views // 2 * 2
        views[:, 0:paired:2, :, n:] += stray
        views[:, 1:paired:2, :, n:] -= stray
        return views

    def in_units(self, gradients: np.ndarray) -> np.ndarray:
        """Scale gradients so that a clipped record's step is 1 on each of its coordinates."""
        return gradients * (self.dpsgd.expected_batch * LAYERS**0.5 / self.dpsgd.clip_norm)

    def in_deviations(self, gradients: np.ndarray) -> np.ndarray:
        """Scale gradients so that noise is standard normal."""
        spread = self.dpsgd.noise_multiplier * self.dpsgd.clip_norm
        return gradients * (self.dpsgd.expected_batch / spread)
