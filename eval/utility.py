"""Downstream utility: train on synthetic images, choose the epoch on synthetic, test on real.

The protocol of DPDM (Dockhorn et al. 2023): 90 % of the synthetic images train, the other 10 %
choose the epoch by accuracy, the chosen weights are tested once on real images. 50 epochs of Adam
at 3e-4, batch 128, pixels in [-1, 1]. The ceiling that real data would reach is the same function
given real training images.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from eval.arrays import check_images, check_labels
from eval.classifiers import architecture
from eval.settings import BATCH_SIZE, EPOCHS, LEARNING_RATE, VALIDATION_FRACTION

_PREDICTION_BATCH = 1000


@dataclass(frozen=True)
class ClassifierResult:
    """Accuracy of a classifier that was trained on one set and tested on another.

    Attributes:
        name: registry name of the classifier.
        accuracy: fraction of test images classified correctly, in [0, 1].
        per_class: the same for each true class; None where the test set has no such image.
        confusion: [C, C] counts, row the true class and column the predicted one.
        chosen_epoch: the epoch, counted from 1, whose weights were tested.
        validation_accuracy: accuracy of that epoch on the held-out part of the training set.
    """

    name: str
    accuracy: float
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    chosen_epoch: int
    validation_accuracy: float


class _Labelled(NamedTuple):
    """Images uint8 [N, C, H, W] (bytes until a batch is drawn, to save room), labels int64 [N]."""

    images: Tensor
    labels: Tensor


def split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers that train (90 %) and those that choose the epoch (10 %).

    They are a seeded permutation of 0..count-1, so the order of the images does not matter.

    Raises:
        ValueError: fewer than ten images, of which a tenth is no image.
    """
    held_out = int(count * VALIDATION_FRACTION)
    if held_out < 1:
        raise ValueError(
            f"training images: expected at least 10 to hold a tenth out, found {count}"
        )
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
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: str = "cpu",
) -> ClassifierResult:
    """Train a classifier on one image set and test it on another.

    The result is a function of the arguments, on a CPU with a fixed number of threads. Torch's
    global generators are left as they were.

    Args:
        name: "logreg", "mlp" or "cnn".
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

    Raises:
        TypeError: an array of the wrong type.
        ValueError: an unknown classifier, a wrong shape, or a setting out of range.
    """
    _check_settings(classes, epochs, learning_rate, batch_size)
    build = architecture(name)
    _check_data(train_images, train_labels, test_images, test_labels, classes)
    train_rows, held_out_rows = split(len(train_images), seed)
    place = torch.device(device)
    train = _to_device(train_images[train_rows], train_labels[train_rows], place)
    held_out = _to_device(train_images[held_out_rows], train_labels[held_out_rows], place)

    with _seeded(seed, place):
        height, width, channels = train_images.shape[1:]
        network = build(height, width, channels, classes).to(place)
        optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
        chosen_epoch, best, weights = 0, -1.0, network.state_dict()
        for epoch in range(1, epochs + 1):
            _train_epoch(network, optimiser, train, batch_size)
            reached = _accuracy(network, held_out)
            if reached > best:
                chosen_epoch, best = epoch, reached
                weights = copy.deepcopy(network.state_dict())

    network.load_state_dict(weights)
    test = _to_device(test_images, test_labels, place)
    return _result(name, _confusion(network, test, classes), chosen_epoch, best)


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
    with torch.inference_mode():
        parts = [network(_scaled(part)).argmax(dim=1) for part in images.split(_PREDICTION_BATCH)]
    return torch.cat(parts)


def _accuracy(network: nn.Module, data: _Labelled) -> float:
    return int((_predict(network, data.images) == data.labels).sum()) / len(data.labels)


def _confusion(network: nn.Module, data: _Labelled, classes: int) -> np.ndarray:
    """Return counts [C, C], row the true class and column the predicted one."""
    cells = data.labels * classes + _predict(network, data.images)
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes).cpu().numpy()


def _result(
    name: str, confusion: np.ndarray, chosen_epoch: int, validation_accuracy: float
) -> ClassifierResult:
    right, totals = confusion.diagonal(), confusion.sum(axis=1)
    return ClassifierResult(
        name=name,
        accuracy=int(right.sum()) / int(totals.sum()),
        per_class=tuple(int(r) / int(n) if n else None for r, n in zip(right, totals, strict=True)),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        chosen_epoch=chosen_epoch,
        validation_accuracy=validation_accuracy,
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
    for setting, value, least in zip(
        ("classes", "epochs", "batch_size"), (classes, epochs, batch_size), (2, 1, 1), strict=True
    ):
        if value < least:
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
        check_images(images, f"{kind} images")
        check_labels(labels, len(images), classes, f"{kind} labels")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            "test images: expected the training images' shape "
            f"{train_images.shape[1:]}, found {test_images.shape[1:]}"
        )
