"""The denoising loss of one record over its K views (noise multiplicity).

l_i = (1/K) sum_k lambda(sigma_ik) || D(x_i + n_ik; sigma_ik, y_i) - x_i ||^2
(Dockhorn et al. 2023).

Shapes: N records, K views, C channels, H and W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from privacy.validation import positive_int
from synth.preconditioning import Preconditioning
from synth.settings import Precision


def draw_views(
    preconditioning: Preconditioning, images: Tensor, K: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw sigma [N, K] ~ p(sigma) and noise [N, K, C, H, W] ~ N(0, sigma^2 I) for N images.

    Of `images` [N, C, H, W] only shape, dtype and device are used; the generator may be on another.

    Raises:
        InvalidRequest: K is not a positive integer.

    >>> from synth.preconditioning import EDM
    >>> images = torch.zeros(5, 1, 8, 8)
    >>> sigma, noise = draw_views(EDM(), images, K=3, generator=torch.Generator().manual_seed(0))
    >>> tuple(sigma.shape), tuple(noise.shape)
    ((5, 3), (5, 3, 1, 8, 8))
    """
    N, K = len(images), positive_int("noise multiplicity K", K)
    device = generator.device
    # torch may draw 0 itself, where no noise level need be positive.
    u_NK = torch.rand((N, K), generator=generator, dtype=torch.float64, device=device)
    u_NK.clamp_(min=2.0**-54)
    normal = torch.randn((N, K, *images.shape[1:]), generator=generator, device=device)
    return form_views(
        preconditioning, u_NK.to(images.device), normal.to(images.device, images.dtype)
    )


def form_views(
    preconditioning: Preconditioning, u_NK: Tensor, normal_NKCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn u ~ U(0, 1), float64 and neither 0 nor 1, and N(0, I) into noise levels and noises."""
    sigma_NK = preconditioning.noise_level_icdf(u_NK).to(normal_NKCHW.dtype)
    return sigma_NK, sigma_NK[:, :, None, None, None] * normal_NKCHW


def drop_labels(labels: Tensor, null: int, probability: float, u_N: Tensor) -> Tensor:
    """Replace labels [N] whose u ~ U(0, 1) is below `probability` by `null`, the label "none".

    Once a record, not once a view: the K views of a record share its label.

    Raises:
        InvalidRequest: the probability is not in [0, 1].

    >>> drop_labels(torch.tensor([4, 7]), 10, probability=0.1, u_N=torch.tensor([0.05, 0.5]))
    tensor([10,  7])
    """
    if not 0 <= probability <= 1:
        raise InvalidRequest(f"label drop probability must lie in [0, 1], found {probability}")
    return torch.where(u_N.to(labels.device) < probability, null, labels)


def autocast(precision: Precision, device_type: str) -> torch.autocast:
    """Return a context in which products and convolutions run in that precision.

    Weights stay float32 and are rounded on the way; normalisation takes its statistics in float32.
    """
    # No cache: within a CUDA graph it would hold tensors that nobody fills, and rounding the
    # weights costs little beside a batch.
    return torch.autocast(
        device_type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )


class DenoisingLoss:
    """The loss of one record, a function of the record and its views only.

    `preconditioning` is the denoiser's own; the network's products and convolutions are computed in
    `precision`, the loss in float32.
    """

    def __init__(self, preconditioning: Preconditioning, precision: Precision = "float32") -> None:
        self.preconditioning = preconditioning
        self.precision = precision

    def __call__(
        self,
        denoiser: Callable[..., Tensor],
        image: Tensor,
        label: Tensor,
        sigma: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            denoiser: D(x [K, C, H, W], sigma [K], label [K]) -> [K, C, H, W].
            image: [C, H, W], the clean record in [-1, 1].
            label: scalar integer.
            sigma: [K] noise levels.
            noise: [K, C, H, W], already scaled by sigma.
        """
        with autocast(self.precision, image.device.type):
            denoised = denoiser(image + noise, sigma, label.expand(sigma.shape[0]))
        squared_K = (denoised - image).square().sum(dim=(1, 2, 3))
        # The mean over the views comes before any clipping: one gradient a record, and the
        # sensitivity stays C whatever K.
        return (self.preconditioning.weight(sigma) * squared_K).mean()
