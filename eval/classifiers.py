"""The classifiers by which downstream utility is measured."""

from typing import Protocol

from torch import nn


class Architecture(Protocol):
    """Builds an untrained network from images [B, C, H, W] in [-1, 1] to logits [B, classes]."""

    def __call__(self, height: int, width: int, channels: int, classes: int) -> nn.Module:
        """Builds the network; its weights come from torch's global generator.

        Raises:
            ValueError: the images are too small for the architecture.
        """
        ...


SMALLEST_UNPADDED = 18
SMALLEST = 4
DROPOUT = 0.5


def cnn(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """Builds the network; see the module's text for its layers.

    Raises:
        ValueError: a side is shorter than four pixels.
    """
    if min(height, width) < SMALLEST:
        raise ValueError(
            f"cnn: expected images of at least {SMALLEST}x{SMALLEST} pixels, "
            f"found {height}x{width}; use logreg or mlp"
        )
    padding = 0 if min(height, width) >= SMALLEST_UNPADDED else 1
    flattened = 128 * _side_left(height, padding) * _side_left(width, padding)
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=3, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Conv2d(32, 64, kernel_size=3, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Conv2d(64, 128, kernel_size=3, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flattened, 128),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(128, classes),
    )


def _side_left(side: int, padding: int) -> int:
    """Pixels along a side after conv, pool, conv, pool, conv."""
    shrink = 2 - 2 * padding
    return ((side - shrink) // 2 - shrink) // 2 - shrink


def logistic_regression(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """One linear layer, d -> classes with d = height * width * channels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, classes))


HIDDEN = 100


def mlp(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """d -> 100 -> classes with d = height * width * channels; 784-100-10 on MNIST."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(height * width * channels, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )


CLASSIFIERS: dict[str, Architecture] = {
    "logreg": logistic_regression,
    "mlp": mlp,
    "cnn": cnn,
}


def architecture(name: str) -> Architecture:
    """The architecture registered under `name`.

    Raises:
        ValueError: no such name.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier: expected one of {', '.join(CLASSIFIERS)}, found {name!r}")
    return CLASSIFIERS[name]
