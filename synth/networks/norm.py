"""Group normalisation: statistics of one record only, as per-record gradients need."""

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of min(channels/4, 32) groups, or of the next fewer that divide the channels."""
    most = max(min(channels // 4, 32), 1)
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)
