"""Random warps of synthetic images: free, for they touch nothing private.

Lengths are for 28 pixels and scale with the image.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

ROTATION, LOG_SCALE, SHEAR = 0.15, 0.1, 0.12  # standard deviations
SHIFT, DISPLACEMENT, CORRELATION = 1.0, 1.2, 4.0  # pixels of 28


def warp(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return each image [n, c, S, S] under its own random affine map and smooth displacement.

    `strength` scales all standard deviations: 0 returns the images as they are.
    """
    n, S = len(images), images.shape[-1]
    if strength == 0 or n == 0:
        return images
    draw = strength * torch.randn(n, 6, generator=generator)
    turn = ROTATION * draw[:, 0]
    scale = torch.exp(LOG_SCALE * draw[:, 1:3])
    shear, shift = SHEAR * draw[:, 3], SHIFT * 2 / 28 * draw[:, 4:6]
    cos, sin = turn.cos(), turn.sin()
    # Rotation times (shear, scale), in the units of `grid_sample`: an image spans [-1, 1].
    rows = torch.stack(
        [
            torch.stack([cos * scale[:, 0], (cos * shear - sin) * scale[:, 1], shift[:, 0]], 1),
            torch.stack([sin * scale[:, 0], (sin * shear + cos) * scale[:, 1], shift[:, 1]], 1),
        ],
        1,
    )
    grid = functional.affine_grid(rows, [n, 1, S, S], align_corners=False)
    knots = max(2, math.ceil(28 / CORRELATION))
    coarse = strength * torch.randn(n, 2, knots, knots, generator=generator)
    smooth = functional.interpolate(coarse, size=(S, S), mode="bicubic", align_corners=False)
    grid = grid + (DISPLACEMENT * 2 / 28) * smooth.permute(0, 2, 3, 1)
    # Edges go on outside: black only where the image itself is.
    return functional.grid_sample(
        images, grid.to(images), mode="bilinear", padding_mode="border", align_corners=False
    )
