"""The sizes that are measured: the demo's, the paper's MNIST, and colour at 32x32.

Shapes: n records run, K views, C channels, H = W = size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synth.preconditioning import EDM, Denoiser, DenoisingLoss, draw_views
from synth.unet import UNet, UNetConfig

_CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """One size of the problem.

    Attributes:
        name: shown in tables.
        network: shape of the U-Net.
        views: K.
        dataset: N, over which masks are drawn.
        batch: B, the expected batch of a real step.
        nfe_steps: noise levels of the sampler; few, since each costs the same.
        kind: type of the device that steps run on, "cpu" or "cuda".
    """

    name: str
    network: UNetConfig
    views: int
    dataset: int
    batch: int
    nfe_steps: int
    kind: str = "cpu"

    def denoiser(self) -> Denoiser:
        """Return D with perturbed weights: at the initial ones most gradients are zero."""
        denoiser = Denoiser(UNet(self.network), EDM())
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        return denoiser.to(self.kind)

    def records(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return images [n, C, H, W], labels [n], sigma [n, K] and noise [n, K, C, H, W]."""
        generator = torch.Generator().manual_seed(2)
        shape = (n, self.network.channels, self.network.size, self.network.size)
        images = 2 * torch.rand(shape, generator=generator) - 1
        labels = torch.randint(0, _CLASSES, (n,), generator=generator)
        drawn = (images, labels, *draw_views(EDM(), images, self.views, generator))
        images, labels, sigma, noise = (part.to(self.kind) for part in drawn)
        return images, labels, sigma, noise

    def loss(self) -> DenoisingLoss:
        """Return the loss of one record over its views."""
        return DenoisingLoss(EDM())


SMALL = Workload(
    name="8x8, 0.19 M parameters, K=8",
    network=UNetConfig(
        size=8, channels=1, base=16, multipliers=(1, 2), blocks=1, attention=(4,), classes=_CLASSES
    ),
    views=8,
    dataset=1438,
    batch=256,
    nfe_steps=6,
)
PAPER = Workload(
    name="28x28, 1.75 M parameters, K=8",
    network=UNetConfig(size=28, channels=1, classes=_CLASSES),
    views=8,
    dataset=60_000,
    batch=4000,
    nfe_steps=2,
)
PAPER_K32 = replace(PAPER, name="28x28, 1.75 M parameters, K=32", views=32)
COLOUR = Workload(
    name="32x32x3, 1.81 M parameters, K=4",
    network=UNetConfig(size=32, channels=3, attention=(16, 8), classes=_CLASSES),
    views=4,
    dataset=50_000,
    batch=2000,
    nfe_steps=2,
)
