"""Self-attention over the pixels of a feature map.

Shapes: B batch, C channels, H and W pixels, T = H*W tokens.
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
        q_BCT, k_BCT, v_BCT = self.qkv(self.norm(x)).reshape(B, 3, C, H * W).unbind(dim=1)
        logits_BTT = torch.matmul(q_BCT.transpose(1, 2) / math.sqrt(C), k_BCT)
        attended_BCT = torch.matmul(v_BCT, logits_BTT.softmax(dim=-1).transpose(1, 2))
        return (x + self.projection(attended_BCT.reshape(B, C, H, W))) * SKIP_SCALE
