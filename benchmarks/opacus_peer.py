"""Opacus used correctly for K views: K forward passes, their mean, one backward pass, one clip.

Repeating the input K times instead would clip each copy and give a record K times the sensitivity.
With K forward passes before one backward pass Opacus adds the K gradients of a record up before
its norm is taken. Its `strict` check refuses any model that has a buffer; ours is a table of
constants that no record is written to, so it is switched off. Convolutions, GroupNorm, linear
layers and embeddings of the U-Net all have grad samplers in Opacus, and all sums are checked
against ours before anything is timed.
"""

import copy

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor

from synth.preconditioning import Denoiser


class OpacusPeer:
    """Sums of clipped gradients by Opacus, for a copy of a denoiser."""

    def __init__(self, denoiser: Denoiser, clip_norm: float) -> None:
        self._denoiser = copy.deepcopy(denoiser)
        self._config = denoiser.preconditioning
        self._model = GradSampleModule(self._denoiser, loss_reduction="sum", strict=False)
        self._optimizer = DPOptimizer(
            torch.optim.SGD(self._model.parameters(), lr=0.0),
            noise_multiplier=0.0,
            max_grad_norm=clip_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )

    def sums(self, records: tuple[Tensor, ...], micro_batch: int) -> dict[str, Tensor]:
        """Return the sum over all records, by parameter name."""
        for chunk in zip(*(part.split(micro_batch) for part in records), strict=True):
            self._backward(*chunk)
            # A skipped step clips and accumulates; it is how Opacus itself splits a batch.
            self._optimizer.signal_skip_step(True)
            self._optimizer.step()
            self._optimizer.zero_grad()
        sums = {name: p.summed_grad for name, p in self._denoiser.named_parameters()}
        for parameter in self._denoiser.parameters():
            parameter.summed_grad = None
        return sums

    def _backward(self, image: Tensor, label: Tensor, sigma: Tensor, noise: Tensor) -> None:
        views = sigma.shape[1]
        total = sigma.new_zeros(())
        for k in range(views):
            denoised = self._model(image + noise[:, k], sigma[:, k], label)
            squared = (denoised - image).square().sum(dim=(1, 2, 3))
            total = total + (self._config.weight(sigma[:, k]) * squared).sum() / views
        total.backward()
