"""Candidates for the strength of warps, each judged by a small classifier trained on its images.

Training touches synthetic images only. How often the classifiers are right on private records is a
paid query (`privacy.moments.right_answers`).
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

STRENGTHS = (0.0, 0.5, 1.0)
NAMES = ("offsets", "agreement", "classifier")  # what is made for each
_EPOCHS, _BATCH, _RATE = 3, 64, 2e-3


def classifier(shape: Sequence[int], classes: int) -> nn.Module:
    """Return two convolutions and a linear layer for images of shape (c, S, S)."""
    channels, size = shape[0], shape[1]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (size // 4) ** 2, classes),
    )


def train(images: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Train a classifier on synthetic images [n, c, S, S] with labels [n]; return its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        network = classifier(images.shape[1:], classes)
    batches = len(images) // _BATCH * _EPOCHS
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, batches))
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(images) // _BATCH * _BATCH].split(_BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            falling.step()
    return parameters_to_vector(network.parameters()).detach()


@torch.no_grad()
def right_answers(
    weights: Sequence[Tensor],
    chunks: Iterable[tuple[Tensor, Tensor]],
    shape: Sequence[int],
    classes: int,
) -> Iterator[Tensor]:
    """Yield whether each classifier is right on each record, bool [n, M], a chunk at a time.

    `chunks` are images of (c, S, S) = `shape` with their labels.
    """
    networks = [classifier(shape, classes) for _ in weights]
    for network, vector in zip(networks, weights, strict=True):
        vector_to_parameters(vector.cpu().float(), network.parameters())
    for x, y in chunks:
        answers = [network.to(x.device)(x).argmax(1) == y for network in networks]
        yield torch.stack(answers, 1)
