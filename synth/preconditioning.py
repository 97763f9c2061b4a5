"""Preconditioning D(x; σ, y) of a raw network: EDM, v, VP and VE; noised views and their loss.

Shapes: N records, K views, C channels, H and W pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from privacy.errors import InvalidRequest
from privacy.validation import positive_int
from synth.settings import EDM_P_MEAN, EDM_P_STD, ComponentSettings, Positive, Precision


class Preconditioning(ComponentSettings, ABC):
    """One preconditioning, its noise distribution and its loss weighting.

    All functions work element by element and keep shape and dtype. The fields are constants.

    Raises:
        InvalidRequest: a constant is unknown or refused.
    """

    # No constant may be measured on the data: that would cost privacy.

    name: ClassVar[str]

    @abstractmethod
    def c_skip(self, sigma: Tensor) -> Tensor:
        """Scale of the input that skips the network."""

    @abstractmethod
    def c_out(self, sigma: Tensor) -> Tensor:
        """Scale of the network's output."""

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """Scale of the network's input."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """The noise level in the form that the network takes."""

    @abstractmethod
    def weight(self, sigma: Tensor) -> Tensor:
        """Loss weighting lambda(sigma)."""

    @abstractmethod
    def noise_level_icdf(self, u: Tensor) -> Tensor:
        """Noise level below which p(sigma) has probability u, for float64 u in (0, 1).

        Positive and increasing in u: a draw of p(sigma) where u ~ U(0, 1).
        """


class Denoiser(nn.Module):
    """D(x; sigma, y) = c_skip x + c_out F(c_in x; c_noise, y) of a raw network F.

    Args:
        network: F(x [B, C, H, W], c_noise [B], label [B] or None) -> [B, C, H, W].
        preconditioning: its scales and noise encoding; the loss takes the same one.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Estimate the clean images of x [B, C, H, W] at sigma [B], in the dtype of x.

        `label` [B] holds integers, the network's null index for "no label".
        """
        of = self.preconditioning
        c_skip, c_out, c_in = (
            c(sigma).to(x.dtype)[:, None, None, None] for c in (of.c_skip, of.c_out, of.c_in)
        )
        # The network runs in its parameters' dtype; a sampler may keep its state x in float64.
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        c_noise = of.c_noise(sigma).to(dtype)
        F_BCHW = self.network((c_in * x).to(dtype), c_noise, label)
        return c_skip * x + c_out * F_BCHW.to(x.dtype)


def example_inputs(images: int, channels: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, noise levels and labels for a denoiser, all alike, on the default device."""
    x = torch.zeros(images, channels, size, size)
    return x, torch.ones(images), torch.zeros(images, dtype=torch.long)


class _UnitVariance(Preconditioning):
    """Inputs and targets of unit variance at every noise level, for data of sigma_data.

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_in = 1 / sqrt(sigma^2 + sigma_data^2),
    c_out = sigma sigma_data c_in, lambda = 1 / c_out^2.
    """

    # U(-1, 1)'s. Fixed by the images' type: measured on private data, it would cost privacy.
    sigma_data: Positive = math.sqrt(1 / 3)

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * torch.rsqrt(sigma**2 + self.sigma_data**2)

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.rsqrt(sigma**2 + self.sigma_data**2)

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class EDM(_UnitVariance):
    """Karras et al. 2022: ln sigma ~ N(p_mean, p_std^2)."""

    name: ClassVar[str] = "edm"
    p_mean: float = EDM_P_MEAN
    p_std: Positive = EDM_P_STD

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(sigma) / 4."""
        return torch.log(sigma) / 4

    def noise_level_icdf(self, u: Tensor) -> Tensor:
        """exp(p_mean + p_std Phi^-1(u)), the log-normal's."""
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u))


class V(_UnitVariance):
    """The EDM form at sigma_data = 1, with t ~ U(t_min, t_max) and sigma(t) = tan(pi t / 2).

    ln(1/sigma^2) lies between log_snr_min and log_snr_max in training.
    """

    name: ClassVar[str] = "v"
    log_snr_min: float = -9.0
    log_snr_max: float = 13.0
    sigma_data: Annotated[float, Field(ge=1, le=1)] = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.log_snr_min >= self.log_snr_max:
            raise ValueError(f"expected log_snr_min < log_snr_max, found {self}")
        return self

    # The paper prints arccosines of 1/sqrt(1 + e^-log_snr) and sqrt(cos^-2(pi t/2) - 1) for what
    # are arctangents and a tangent here: the same, but these do not cancel near t = 0.

    @property
    def times(self) -> tuple[float, float]:
        """Range of the times drawn in training (epsilon_min and epsilon_max of the paper)."""
        low, high = math.exp(-0.5 * self.log_snr_max), math.exp(-0.5 * self.log_snr_min)
        return 2 / math.pi * math.atan(low), 2 / math.pi * math.atan(high)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at time t in [0, 1)."""
        return torch.tan(0.5 * math.pi * t)

    def t(self, sigma: Tensor) -> Tensor:
        """Return the time at which the noise level is sigma."""
        return 2 / math.pi * torch.atan(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """t(sigma)."""
        return self.t(sigma)

    def noise_level_icdf(self, u: Tensor) -> Tensor:
        """sigma(t) at t = t_min + (t_max - t_min) u: uniform in t, with which sigma rises."""
        t_min, t_max = self.times
        return self.sigma(t_min + (t_max - t_min) * u)


class _NoisePrediction(Preconditioning):
    """The input is skipped to the output; errors of the noise weigh evenly."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        return sigma**-2


class VP(_NoisePrediction):
    """D = x - sigma F, sigma^2(t) = exp(beta_d t^2/2 + beta_min t) - 1, t ~ U(epsilon_t, 1)."""

    name: ClassVar[str] = "vp"
    beta_d: Positive = 19.9
    beta_min: Positive = 0.1
    epsilon_t: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    M: Annotated[int, Field(ge=2)] = 1000  # times that the network's noise label counts

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at time t."""
        return torch.sqrt(torch.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))

    def t(self, sigma: Tensor) -> Tensor:
        """Return the time at which the noise level is sigma: a quadratic's root."""
        # Written so that nothing cancels where sigma is small.
        exponent = torch.log1p(sigma**2)
        root = torch.sqrt(self.beta_min**2 + 2 * self.beta_d * exponent)
        return 2 * exponent / (self.beta_min + root)

    def c_out(self, sigma: Tensor) -> Tensor:
        """-sigma."""
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(sigma^2 + 1)."""
        return torch.rsqrt(sigma**2 + 1)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """(M - 1) t(sigma)."""
        return (self.M - 1) * self.t(sigma)

    def noise_level_icdf(self, u: Tensor) -> Tensor:
        """sigma(t) at t = epsilon_t + (1 - epsilon_t) u: uniform in t, with which sigma rises."""
        return self.sigma(self.epsilon_t + (1 - self.epsilon_t) * u)


class VE(_NoisePrediction):
    """D = x + sigma F, with ln sigma ~ U(ln sigma_min, ln sigma_max)."""

    name: ClassVar[str] = "ve"
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"expected sigma_min < sigma_max, found {self}")
        return self

    def c_out(self, sigma: Tensor) -> Tensor:
        """Sigma."""
        return sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(sigma / 2)."""
        return torch.log(sigma / 2)

    def noise_level_icdf(self, u: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^u: uniform in ln sigma."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.exp(low + (high - low) * u)


PRECONDITIONINGS: dict[str, type[Preconditioning]] = {c.name: c for c in (VP, VE, V, EDM)}


def draw_views(
    preconditioning: Preconditioning, images: Tensor, K: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw sigma [N, K] ~ p(sigma) and noise [N, K, C, H, W] ~ N(0, sigma^2 I) for N images.

    Of `images` [N, C, H, W] only shape, dtype and device are used; the generator may be on another.

    Raises:
        InvalidRequest: K is not a positive integer.

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
    """The loss of one record over its K views (noise multiplicity), Dockhorn et al. 2023.

    l_i = (1/K) sum_k lambda(sigma_ik) || D(x_i + n_ik; sigma_ik, y_i) - x_i ||^2. The network's
    products and convolutions are computed in `precision`, the loss in float32.
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
