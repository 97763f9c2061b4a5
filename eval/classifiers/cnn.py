"""The convolutional classifier of DPDM (Dockhorn et al. 2023), for any image size.

conv 3x3 (C->32), max pool 2, ReLU, dropout 0.5; conv 3x3 (32->64), max pool 2, ReLU, dropout 0.5;
conv 3x3 (64->128), ReLU; linear 1152->128, ReLU, dropout 0.5; linear 128->classes. No padding.

At 28x28 this is the paper's network: 28 -> 26 -> 13 -> 11 -> 5 -> 3, hence 128 * 3 * 3 = 1152.
Elsewhere the first linear layer takes whatever width the convolutions leave. Three unpadded
convolutions and two pools leave nothing of a side under 18 pixels, so smaller images (8x8 digits)
get one pixel of zero padding at each convolution: 8 -> 4 -> 2, width 128 * 2 * 2 = 512. Four pixels
are the least that two pools can take.
"""

from torch import nn

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
