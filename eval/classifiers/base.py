"""What a classifier is to the evaluation: a way to build a network for an image shape."""

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
