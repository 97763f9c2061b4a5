"""Denoising for sampling: batch size, precision, memory order and CUDA graphs."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.cuda_graph import Work, capture
from privacy.errors import InvalidRequest
from synth.preconditioning import Denoiser, autocast
from synth.settings import PRECISIONS, Precision
from synth.unet import SKIP_SCALE, Attention, ResidualBlock, resampled

# Measured on CPU cores with 1 to 2 MiB of cache of their own: at 8x8 and 28x28 sampling is fastest
# where one feature map at full resolution fills about this much, and never below 32 rows (64 of
# half the bytes). A GPU wants as many as fit.
_CPU_BYTES = 2**20
_GPU_BYTES = 2**28
_LEAST_ROWS = 32  # in float32
_ELEMENT_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}


def chosen_batch(
    size: int, base: int, precision: Precision, *, guided: bool = False, on_gpu: bool = False
) -> int:
    """Return the number of images in a batch of the sampler.

    Args:
        size: pixels along each side of an image.
        base: channels of the network at full resolution.
        precision: what it runs in.
        guided: with guidance every image goes through the network twice, in one batch.
        on_gpu: where it is meant to run.
    """
    element = _ELEMENT_BYTES[precision]
    row = size**2 * base * element
    rows = max(_LEAST_ROWS * 4 // element, (_GPU_BYTES if on_gpu else _CPU_BYTES) // row)
    return rows // 2 if guided else rows


def channels_last(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of the network for inference, convolutions and attention in `dtype`.

    Everything else stays as it is: in float32, the statistics of norms included. Takes and returns
    what the network does, but the result [B, C, H, W] is in `dtype`.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    _substitute(network, dtype)
    return network


def _substitute(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        _substitute(child, dtype)
        match child:
            case nn.Conv2d():
                setattr(module, name, _Convolution(child, dtype))
            case nn.GroupNorm():
                setattr(module, name, _Norm(child))
            case Attention():
                setattr(module, name, _Attention(child))
            case ResidualBlock():
                setattr(module, name, _Block(child))


class _Convolution(nn.Module):
    """A convolution of what is rounded to `dtype`, summed in float32, given in `dtype`."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, of: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        # Buffers, for parameters of the network are float32: it is told noise levels in it.
        weight = of.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if of.bias is None else of.bias.detach().to(dtype))
        self.stride, self.padding = of.stride, of.padding
        self.dilation, self.groups = of.dilation, of.groups

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [B, C, H, W] and return it with the channels innermost."""
        out = functional.conv2d(
            x.to(self.weight.dtype),
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

    mean_of_group: Tensor

    def __init__(self, of: nn.GroupNorm) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = of.eps, of.weight, of.bias
        # One product turns numbers of channels into the mean over each one's group.
        members = of.num_channels // of.num_groups
        mean_CC = torch.block_diag(*[torch.ones(members, members) / members] * of.num_groups)
        self.register_buffer("mean_of_group", mean_CC)

    def forward(self, x: Tensor, added_BC: Tensor | None = None) -> Tensor:
        """Normalise x [B, C, H, W], channels innermost; float32, the same shape and layout.

        What is to be added to all pixels of a channel first is added to what is known of them.
        """
        B, C, H, W = x.shape
        x_BTC = x.float().permute(0, 2, 3, 1).reshape(B, H * W, C)
        mean_BC = x_BTC.sum(dim=1) / (H * W)
        out_BTC = x_BTC.square()
        square_BC = out_BTC.sum(dim=1) / (H * W)
        if added_BC is not None:
            square_BC += added_BC * (2 * mean_BC + added_BC)
            mean_BC += added_BC
        mean_BC = mean_BC @ self.mean_of_group
        variance_BC = torch.addcmul(square_BC @ self.mean_of_group, mean_BC, mean_BC, value=-1)
        scale_BC = self.weight * torch.rsqrt(variance_BC.clamp_min(0) + self.eps)
        offset_BC = -mean_BC if added_BC is None else added_BC - mean_BC
        shift_BC = torch.addcmul(self.bias, offset_BC, scale_BC)
        torch.addcmul(shift_BC[:, None], x_BTC, scale_BC[:, None], out=out_BTC)
        return out_BTC.view(B, H, W, C).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """A residual block whose activations overwrite what they are given."""

    def __init__(self, of: ResidualBlock) -> None:
        super().__init__()
        self.resample = of.resample
        self.norm0, self.conv0, self.condition = of.norm0, of.conv0, of.condition
        self.norm1, self.conv1 = of.norm1, of.conv1
        self.skip, self.attention = of.skip, of.attention

    def forward(self, x: Tensor, e_BE: Tensor) -> Tensor:
        """Transform x [B, C_in, H, W] under the embedding [B, E], as `ResidualBlock` does."""
        h = resampled(functional.silu(self.norm0(x), inplace=True), self.resample)
        h = self.norm1(self.conv0(h), self.condition(e_BE))
        h = self.conv1(functional.silu(h, inplace=True))
        skip = resampled(x, self.resample)
        if self.skip is not None:
            skip = self.skip(skip)
        h = (skip + h).mul_(SKIP_SCALE)
        return h if self.attention is None else self.attention(h)


class _Attention(nn.Module):
    """Self-attention over pixels as rows, its softmax in float32."""

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
        return (x + self.projection(attended)).mul_(SKIP_SCALE)


@dataclass(frozen=True)
class _Captured:
    inputs: tuple[Tensor, ...]
    output: Tensor
    replay: Work


class CapturedNetwork(nn.Module):
    """F(x; c_noise, y) captured as a CUDA graph once for each shape, and replayed from then on.

    The next call of the same shape overwrites what a call returns; `Denoiser` has turned it into a
    tensor of its own by then. No gradient flows through it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._captured: dict[torch.Size, _Captured] = {}

    @torch.inference_mode()
    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        """Evaluate F on CUDA tensors x [B, C, H, W], c_noise [B] and label [B]."""
        if x.shape not in self._captured:
            self._captured[x.shape] = self._capture(x, c_noise, label)
        captured = self._captured[x.shape]
        for held, given in zip(captured.inputs, (x, c_noise, label), strict=True):
            held.copy_(given)
        captured.replay()
        return captured.output

    def _capture(self, *given: Tensor) -> _Captured:
        inputs = tuple(tensor.clone() for tensor in given)
        output = self.network(*inputs)

        def work() -> None:
            output.copy_(self.network(*inputs))

        return _Captured(inputs, output, capture(work, output.device))


class Bfloat16(nn.Module):
    """F with its convolutions and products in bfloat16, summed in float32.

    The weights stay float32 and are rounded on the way; normalisation takes its statistics in
    float32. Takes what the network takes and returns [B, C, H, W] in bfloat16.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate F on float32 x [B, C, H, W] and c_noise [B], label [B]."""
        with autocast("bfloat16", x.device.type):
            return self.network(x, c_noise, label)


def at_precision(
    denoiser: Denoiser, precision: str = "float32", device: torch.device | str = "cpu"
) -> Denoiser:
    """Make a denoiser ready for sampling: on its device, for evaluation only, at a precision.

    Args:
        denoiser: with trained weights; its network is moved to a GPU, and copied for a CPU.
        precision: one of `PRECISIONS`. A public choice: it decides the last bits of every image.
        device: where it shall run. On CUDA the network is captured as a graph, channels last.

    Raises:
        InvalidRequest: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise InvalidRequest(f"no precision {precision!r}: choose among {', '.join(PRECISIONS)}")
    device = torch.device(device)
    if device.type == "cuda":
        network = _on_gpu(denoiser.network.to(device), precision)
    else:
        network = channels_last(denoiser.network.to(device), getattr(torch, precision))
    return Denoiser(network, denoiser.preconditioning)


def _on_gpu(network: nn.Module, precision: str) -> nn.Module:
    network = network.eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return CapturedNetwork(Bfloat16(network) if precision == "bfloat16" else network)
