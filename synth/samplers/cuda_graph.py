"""The network as one launch: a GPU starts its hundreds of small kernels slower than it runs them.

Capture only, no compiler: Triton and cuDNN may time several kernels and keep the fastest, another
on another actor, and a shard's last bits would depend on who made it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CudaGraph(nn.Module):
    """F(x; c_noise, y) captured once for each shape and replayed from then on.

    What a call returns is overwritten by the next call of the same shape; `Denoiser` has turned it
    into a tensor of its own by then. No gradient flows through it.
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
        captured.graph.replay()
        return captured.output

    def _capture(self, *given: Tensor) -> _Captured:
        inputs = tuple(tensor.clone() for tensor in given)
        # Libraries set themselves up in their first calls, which must not be captured.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.network(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.network(*inputs)
        return _Captured(graph, inputs, output)
