"""In which arithmetic a network runs: float32, or bfloat16 for its products and convolutions."""

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def computing_in(precision: Precision, device_type: str) -> torch.autocast:
    """Return a context in which products and convolutions are computed so, on that device type.

    Weights stay float32 and are rounded on the way; normalisation takes its statistics in float32.
    """
    # No cache: within a CUDA graph it would hold tensors that nobody fills, and a rounding of the
    # weights is nothing beside a batch.
    return torch.autocast(
        device_type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )
