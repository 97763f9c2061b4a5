"""In which arithmetic a sampler's network runs.

Only the raw network F may run in bfloat16, and of it only convolutions and products: on a GPU by
autocast, on a CPU, linear layers left out, as `channels_last.py` does it. The schedule, the state x
and the preconditioning stay in float64 (`base.py`), the noise level and its embedding in float32:
bfloat16 has 8 bits, and 50 levels between 80 and 0.002 would fall together or jump.
"""

import torch
from torch import Tensor, nn

from privacy.errors import InvalidRequest
from synth.denoisers import Denoiser
from synth.precision import PRECISIONS, computing_in
from synth.samplers.channels_last import channels_last
from synth.samplers.cuda_graph import CudaGraph


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
        with computing_in("bfloat16", x.device.type):
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
    return Denoiser(network, denoiser.config)


def _on_gpu(network: nn.Module, precision: str) -> nn.Module:
    network = network.eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return CudaGraph(Bfloat16(network) if precision == "bfloat16" else network)
