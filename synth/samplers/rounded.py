"""A network for sampling on CPUs: convolutions and attention in bfloat16, channels innermost.

Three things make autocast slow there, and each is undone here once instead of on every call:
weights are rounded anew; oneDNN, which wants the channels innermost, reorders what it is given
before and after every convolution; and what stands between convolutions runs in bfloat16, where
the processor has to unpack every number first. Here it runs in float32.

Shapes: B batch, C channels, H and W pixels, T = H*W tokens, G groups.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from synth.networks.attention import SKIP_SCALE, Attention


def rounded(network: nn.Module) -> nn.Module:
    """Return a copy of the network for inference with its convolutions and attention in bfloat16.

    Everything else stays as it is: in float32, the statistics of norms included. Takes and returns
    what the network does, but the result [B, C, H, W] is in bfloat16.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    _substitute(network)
    return network


def _substitute(module: nn.Module) -> None:
    for name, child in module.named_children():
        _substitute(child)
        match child:
            case nn.Conv2d():
                setattr(module, name, _Convolution(child))
            case nn.GroupNorm():
                setattr(module, name, _Norm(child))
            case Attention():
                setattr(module, name, _Attention(child))


class _Convolution(nn.Module):
    """A convolution of what is rounded to bfloat16, summed in float32, given in bfloat16."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, of: nn.Conv2d) -> None:
        super().__init__()
        # Buffers, for parameters of the network are float32: it is told noise levels in it.
        weight = of.weight.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if of.bias is None else of.bias.to(torch.bfloat16))
        self.stride, self.padding = of.stride, of.padding
        self.dilation, self.groups = of.dilation, of.groups

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [B, C, H, W] and return it with the channels innermost."""
        out = functional.conv2d(
            x.to(torch.bfloat16),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        # With one channel both layouts are the same to torch, and it would go on in the other one.
        return out.contiguous(memory_format=torch.channels_last)


class _Norm(nn.Module):
    """GroupNorm in float32: torch's own kernel is slow where few channels of a group lie together.

    Its statistics are torch's for this layout: the variance is E[x^2] - E[x]^2, not below zero.
    """

    def __init__(self, of: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = of.num_groups, of.eps
        self.weight, self.bias = of.weight, of.bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, H, W], channels innermost; float32, the same shape and layout."""
        B, C, H, W = x.shape
        x_BTC = x.float().permute(0, 2, 3, 1).reshape(B, H * W, C)
        count = H * W * C // self.groups
        mean_BG1 = self._per_group(x_BTC) / count
        square_BG1 = self._per_group(x_BTC.square()) / count
        variance_BG1 = torch.addcmul(square_BG1, mean_BG1, mean_BG1, value=-1).clamp_min(0)
        scale_BGD = self.weight.view(self.groups, -1) * torch.rsqrt(variance_BG1 + self.eps)
        shift_BGD = torch.addcmul(self.bias.view(self.groups, -1), mean_BG1, scale_BGD, value=-1)
        out_BTC = torch.addcmul(shift_BGD.view(B, 1, C), x_BTC, scale_BGD.view(B, 1, C))
        return out_BTC.view(B, H, W, C).permute(0, 3, 1, 2)

    def _per_group(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.sum(dim=1).view(len(x_BTC), self.groups, -1).sum(dim=2, keepdim=True)


class _Attention(nn.Module):
    """Self-attention over pixels as rows, with its products in bfloat16 and softmax in float32."""

    def __init__(self, of: Attention) -> None:
        super().__init__()
        self.norm, self.qkv, self.projection = of.norm, of.qkv, of.projection

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the pixels of x [B, C, H, W], channels innermost; same shape and layout."""
        B, C, H, W = x.shape
        qkv_BT3C = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(B, H * W, 3 * C)
        q_BTC, k_BTC, v_BTC = qkv_BT3C.split(C, dim=2)
        logits_BTT = torch.bmm(q_BTC, k_BTC.transpose(1, 2)).float() / math.sqrt(C)
        attended_BTC = torch.bmm(logits_BTT.softmax(dim=-1).to(v_BTC.dtype), v_BTC)
        attended = attended_BTC.view(B, H, W, C).permute(0, 3, 1, 2)
        return (x + self.projection(attended)) * SKIP_SCALE
