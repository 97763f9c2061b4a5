"""The classifiers by which downstream utility is measured, DPDM's (Dockhorn et al. 2023).

Each is built from the shape of an image and takes images [B, C, H, W] in [-1, 1] to logits
[B, classes]; its initial weights come from torch's global generator.
"""

from collections.abc import Callable

from torch import nn

_HIDDEN, _DROPOUT = 100, 0.5
_SMALLEST, _SMALLEST_UNPADDED = 4, 18  # pixels of a side


def logistic_regression(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """Return one linear layer, d -> classes with d = height * width * channels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, classes))


def mlp(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """Return d -> 100 -> classes with d = height * width * channels; 784-100-10 on MNIST."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(height * width * channels, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, classes),
    )


def cnn(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """Return three 3x3 convolutions (32, 64, 128) with two poolings, then 128 -> classes.

    Raises:
        ValueError: a side is shorter than four pixels.
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
CLASSIFIERS: dict[str, Architecture] = {
    "logreg": logistic_regression,
    "mlp": mlp,
    "cnn": cnn,
}


def architecture(name: str) -> Architecture:
    """Return the architecture registered under `name`.

    Raises:
        ValueError: no such name.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier: expected one of {', '.join(CLASSIFIERS)}, found {name!r}")
    return CLASSIFIERS[name]
