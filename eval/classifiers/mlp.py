"""The multi-layer perceptron: d-100-classes with ReLU."""

from torch import nn

HIDDEN = 100


def mlp(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """d -> 100 -> classes with d = height * width * channels; 784-100-10 on MNIST."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(height * width * channels, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )
