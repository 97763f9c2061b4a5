"""Logistic regression: one linear layer on the pixels."""

from torch import nn


def logistic_regression(height: int, width: int, channels: int, classes: int) -> nn.Module:
    """One linear layer, d -> classes with d = height * width * channels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, classes))
