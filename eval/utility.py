"""Downstream utility: train on synthetic images, choose the epoch on synthetic, test on real.

The protocol and the classifiers of DPDM (Dockhorn et al. 2023): 90 % of the synthetic images train,
the other 10 % choose the epoch by accuracy, the chosen weights are tested once on real images.
50 epochs of Adam at 3e-4, batch 128. The ceiling that real data would reach is the same function
given real training images.

A classifier is built from the shape of an image and takes images [B, C, H, W] in [-1, 1] to logits
[B, classes]; its initial weights come from torch's global generator.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from eval import arrays, settings

_PREDICTION_BATCH = 1000
_HIDDEN, _DROPOUT = 100, 0.5
# Sides in pixels: what two poolings leave something of, and what they do without padding.
_SMALLEST, _SMALLEST_UNPADDED = 4, 18


def logistic_regression(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """Return one linear layer, d -> classes with d = height * width * channels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, classes))


def mlp(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """Return d -> 100 -> classes with d = height * width * channels; 784-100-10 on MNIST."""
    hidden = nn.Linear(height * width * channels, _HIDDEN)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(_HIDDEN, classes))


def cnn(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """Return three 3x3 convolutions (32, 64, 128) with two poolings, then 128 -> classes.

    Raises ValueError where a side is shorter than four pixels.
    """
    if min(height, width) < _SMALLEST:
        raise ValueError(
            f"cnn: expected images of at least {_SMALLEST}x{_SMALLEST} pixels, "
            f"found {height}x{width}; use logreg or mlp"
        )
    # The paper's network does not pad; smaller images than its own would vanish without.
    padding = 0 if min(height, width) >= _SMALLEST_UNPADDED else 1
    flattened = 128 * _side_left(height, padding) * _side_left(width, padding)

    def halved(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=padding)
        return [convolution, nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(_DROPOUT)]

    return nn.Sequential(
        *halved(channels, 32),
        *halved(32, 64),
        nn.Conv2d(64, 128, kernel_size=3, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flattened, 128),
        nn.ReLU(),
        nn.Dropout(_DROPOUT),
        nn.Linear(128, classes),
    )


def _side_left(side: int, padding: int) -> int:
    """Return the pixels along a side after conv, pool, conv, pool, conv."""
    shrink = 2 - 2 * padding
    return ((side - shrink) // 2 - shrink) // 2 - shrink


#: (height, width, channels, classes) -> network
Architecture = Callable[[int, int, int, int], nn.Module]
CLASSIFIERS: dict[str, Architecture] = {"logreg": logistic_regression, "mlp": mlp, "cnn": cnn}


def architecture(name: str) -> Architecture:
    """Return the architecture registered under `name`; raise ValueError if there is none."""
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier: expected one of {', '.join(CLASSIFIERS)}, found {name!r}")
    return CLASSIFIERS[name]


@dataclass(frozen=True)
class ClassifierResult:
    """Accuracy of a classifier that was trained on one set and tested on another."""

    name: str
    #: Fraction of test images classified correctly, in [0, 1].
    accuracy: float
    #: The same for each true class; None where the test set has no such image.
    per_class: tuple[float | None, ...]
    #: [C, C] counts, row the true class and column the predicted one.
    confusion: tuple[tuple[int, ...], ...]
    #: The epoch, counted from 1, whose weights were tested.
    chosen_epoch: int
    #: Accuracy of that epoch on the held-out part of the training set.
    validation_accuracy: float


class _Labelled(NamedTuple):
    # uint8 [N, C, H, W]: bytes until a batch is drawn, to save room.
    images: Tensor
    # int64 [N].
    labels: Tensor


class _Best(NamedTuple):
    epoch: int
    accuracy: float
    weights: dict[str, Tensor]


def split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers that train (90 %) and those that choose the epoch (10 %).

    Raises ValueError for fewer than ten images, of which a tenth is no image.
    """
    held_out = int(count * settings.VALIDATION_FRACTION)
    if held_out < 1:
        raise ValueError(
            f"training images: expected at least 10 to hold a tenth out, found {count}"
        )
    # Permuted, so that the order of the images does not matter.
    order = np.random.default_rng(seed).permutation(count)
    return order[held_out:], order[:held_out]


def train_and_test(
    name: str,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    classes: int,
    epochs: int = settings.EPOCHS,
    learning_rate: float = settings.LEARNING_RATE,
    batch_size: int = settings.BATCH_SIZE,
    seed: int = 0,
    device: str = "cpu",
) -> ClassifierResult:
    """Train a classifier on one image set and test it on another.

    The result is a function of the arguments, on a CPU with a fixed number of threads.

    Args:
        name: in `CLASSIFIERS`.
        train_images: uint8 [N, H, W, C], the synthetic images (or real ones, for the ceiling).
        train_labels: int64 [N] in 0..classes-1.
        test_images: uint8 [M, H, W, C], real images; nothing but the final test reads them.
        test_labels: int64 [M].
        classes: number of classes, fixed by the class list and not by the labels that occur.
        epochs: passes over the training part.
        learning_rate: of Adam, no decay.
        batch_size: images a step; the last batch of an epoch may be smaller.
        seed: of the split, the initial weights, the order of images and dropout.
        device: torch device on which to train.

    Returns:
        The result on the test set at the first epoch of highest validation accuracy.

    Raises TypeError or ValueError for an unknown classifier, other arrays or impossible settings.
    """
    _check_settings(classes, epochs, learning_rate, batch_size)
    build = architecture(name)
    _check_data(train_images, train_labels, test_images, test_labels, classes)
    place = torch.device(device)
    train, held_out = (
        _to_device(train_images[rows], train_labels[rows], place)
        for rows in split(len(train_images), seed)
    )
    with _seeded(seed, place):
        height, width, channels = train_images.shape[1:]
        network = build(height, width, channels, classes).to(place)
        optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
        best = _train(network, optimiser, train, held_out, epochs, batch_size)
    network.load_state_dict(best.weights)
    test = _to_device(test_images, test_labels, place)
    return _result(name, _confusion(network, test, classes), best)


def _train(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    train: _Labelled,
    held_out: _Labelled,
    epochs: int,
    batch_size: int,
) -> _Best:
    best = _Best(0, -1.0, network.state_dict())
    for epoch in range(1, epochs + 1):
        _train_epoch(network, optimiser, train, batch_size)
        reached = _accuracy(network, held_out)
        # The first of equal epochs is kept.
        if reached > best.accuracy:
            best = _Best(epoch, reached, copy.deepcopy(network.state_dict()))
    return best


def _train_epoch(
    network: nn.Module, optimiser: torch.optim.Optimizer, data: _Labelled, batch_size: int
) -> None:
    network.train()
    order = torch.randperm(len(data.labels)).to(data.labels.device)
    for rows in order.split(batch_size):
        loss = cross_entropy(network(_scaled(data.images[rows])), data.labels[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def _predict(network: nn.Module, images: Tensor) -> Tensor:
    network.eval()
    # In parts, because all activations of a large set do not fit in memory at once.
    with torch.inference_mode():
        parts = [network(_scaled(part)).argmax(dim=1) for part in images.split(_PREDICTION_BATCH)]
    return torch.cat(parts)


def _accuracy(network: nn.Module, data: _Labelled) -> float:
    return int((_predict(network, data.images) == data.labels).sum()) / len(data.labels)


def _confusion(network: nn.Module, data: _Labelled, classes: int) -> np.ndarray:
    """Return counts [C, C], row the true class and column the predicted one."""
    cells = data.labels * classes + _predict(network, data.images)
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes).cpu().numpy()


def _result(name: str, confusion: np.ndarray, best: _Best) -> ClassifierResult:
    right, totals = confusion.diagonal(), confusion.sum(axis=1)
    return ClassifierResult(
        name=name,
        accuracy=int(right.sum()) / int(totals.sum()),
        per_class=tuple(int(r) / int(n) if n else None for r, n in zip(right, totals, strict=True)),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        chosen_epoch=best.epoch,
        validation_accuracy=best.accuracy,
    )


def _to_device(images: np.ndarray, labels: np.ndarray, device: torch.device) -> _Labelled:
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return _Labelled(
        torch.from_numpy(channels_first).to(device),
        torch.from_numpy(labels.astype(np.int64)).to(device),
    )


def _scaled(images: Tensor) -> Tensor:
    """Scale bytes to [-1, 1]."""
    return images.float().mul_(2 / 255).sub_(1)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    # Layers and dropout draw from the global generators: seed these, then restore them.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check_settings(classes: int, epochs: int, learning_rate: float, batch_size: int) -> None:
    given = {"classes": classes, "epochs": epochs, "batch_size": batch_size}
    for setting, value in given.items():
        if value < (least := 2 if setting == "classes" else 1):
            raise ValueError(f"{setting}: expected at least {least}, found {value}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate: expected a positive number, found {learning_rate}")


def _check_data(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
) -> None:
    sets = {"training": (train_images, train_labels), "test": (test_images, test_labels)}
    for kind, (images, labels) in sets.items():
        arrays.check_images(images, f"{kind} images")
        arrays.check_labels(labels, len(images), classes, f"{kind} labels")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            "test images: expected the training images' shape "
            f"{train_images.shape[1:]}, found {test_images.shape[1:]}"
        )
