"""Self-attention over the pixels of a feature map.

Shapes: B batch, C channels, E = 3 C, H and W pixels, T = H*W tokens.
"""

import math

import torch
from torch import Tensor, nn

from synth.networks.norm import group_norm

SKIP_SCALE = 1 / math.sqrt(2)


class Attention(nn.Module):
    """Single-head self-attention, residual, its sum scaled by 1/sqrt(2).

    Written as plain products and not with `scaled_dot_product_attention`, whose CPU kernels have
    no batching rule under `torch.func.vmap`; at 49 to 256 tokens nothing is lost. The projection
    back starts at zero, so a new block passes its input on (scaled).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the pixels of x [B, C, H, W]; same shape out."""
        B, C, H, W = x.shape
        # Pixels as rows: where channels are last in memory, neither way needs a transposed copy.
        qkv_BTE = self.qkv(self.norm(x)).movedim(1, -1).reshape(B, H * W, 3 * C)
        q_BTC, k_BTC, v_BTC = qkv_BTE.split(C, dim=-1)
        logits_BTT = torch.matmul(q_BTC / math.sqrt(C), k_BTC.transpose(1, 2))
        attended_BTC = torch.matmul(logits_BTT.softmax(dim=-1), v_BTC)
        attended = attended_BTC.reshape(B, H, W, C).movedim(-1, 1)
        return (x + self.projection(attended)) * SKIP_SCALE
