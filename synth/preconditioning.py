"""Preconditioning D(x; σ, y) of a raw network: EDM, v, VP and VE."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from privacy.errors import InvalidRequest
from privacy.validation import positive_number
from synth.settings import EDM_P_MEAN, EDM_P_STD


@dataclass(frozen=True)
class Preconditioning(ABC):
    """One preconditioning, its noise distribution and its loss weighting.

    Subclasses are frozen dataclasses whose fields are its constants. None may be measured
    on the data: that would cost privacy. All functions work element by element and keep shape and
    dtype.
    """

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
        """Noise level below which p(sigma) has probability u: a draw of it where u ~ U(0, 1).

        Args:
            u: float64 in the open interval (0, 1), any shape.

        Returns:
            float64 of the same shape, positive, rising with u.
        """


class Denoiser(nn.Module):
    """D(x; sigma, y): a raw network under a preconditioning.

    The network runs in the dtype of its own parameters whatever x is; the sum c_skip x + c_out F
    is formed in the dtype of x, so a sampler may keep its state in float64.

    Args:
        network: F(x [B, C, H, W], c_noise [B], label [B] or None) -> [B, C, H, W].
        preconditioning: its scales and noise encoding; `loss.DenoisingLoss` takes the same one.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            x: [B, C, H, W] noisy images.
            sigma: [B] noise levels, positive.
            label: [B] integers, the network's null index for "no label".

        Returns:
            [B, C, H, W] in the dtype of x.
        """
        of = self.preconditioning
        c_skip, c_out, c_in = (
            c(sigma).to(x.dtype)[:, None, None, None] for c in (of.c_skip, of.c_out, of.c_in)
        )
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        c_noise = of.c_noise(sigma).to(dtype)
        F_BCHW = self.network((c_in * x).to(dtype), c_noise, label)
        return c_skip * x + c_out * F_BCHW.to(x.dtype)


def example_inputs(images: int, channels: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, noise levels and labels for a denoiser, all alike, on the default device."""
    x = torch.zeros(images, channels, size, size)
    return x, torch.ones(images), torch.zeros(images, dtype=torch.long)


class _UnitVariance(Preconditioning):
    """Inputs and targets of unit variance at every noise level, for data of sigma_data."""

    @property
    @abstractmethod
    def sigma_data(self) -> float:
        """Standard deviation assumed of the data."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """sigma_data^2 / (sigma^2 + sigma_data^2)."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Sigma sigma_data / sqrt(sigma_data^2 + sigma^2)."""
        return sigma * self.sigma_data * torch.rsqrt(sigma**2 + self.sigma_data**2)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(sigma^2 + sigma_data^2)."""
        return torch.rsqrt(sigma**2 + self.sigma_data**2)

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class EDM(_UnitVariance):
    """Karras et al. 2022: ln sigma ~ N(p_mean, p_std^2).

    Attributes:
        p_mean, p_std: of the logarithm of the noise levels drawn in training.
        sigma_data: standard deviation assumed of the data.

    Raises:
        InvalidRequest: p_mean is not finite, or p_std or sigma_data not positive and finite.
    """

    name: ClassVar[str] = "edm"

    p_mean: float = EDM_P_MEAN
    p_std: float = EDM_P_STD
    # U(-1, 1)'s. Fixed by the images' type: measured on private data, it would cost privacy.
    sigma_data: float = math.sqrt(1 / 3)

    def __post_init__(self) -> None:
        if not math.isfinite(self.p_mean):
            raise InvalidRequest(f"EDM: expected a finite p_mean, found {self.p_mean}")
        positive_number("EDM's p_std", self.p_std)
        positive_number("EDM's sigma_data", self.sigma_data)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(sigma) / 4."""
        return torch.log(sigma) / 4

    def noise_level_icdf(self, u: Tensor) -> Tensor:
        """exp(p_mean + p_std Phi^-1(u)), the log-normal's."""
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u))


@dataclass(frozen=True)
class V(_UnitVariance):
    """The EDM form at sigma_data = 1, with t ~ U(t_min, t_max) and sigma(t) = tan(pi t / 2).

    Attributes:
        log_snr_min, log_snr_max: range of ln(1/sigma^2) drawn in training.

    Raises:
        InvalidRequest: not -infinity < log_snr_min < log_snr_max < infinity.
    """

    name: ClassVar[str] = "v"

    log_snr_min: float = -9.0
    log_snr_max: float = 13.0

    def __post_init__(self) -> None:
        _require_order(self, "log_snr_min", "log_snr_max", above=-math.inf)

    @property
    def sigma_data(self) -> float:
        """1."""
        return 1.0

    # The paper prints arccosines of 1/sqrt(1 + e^-log_snr) and sqrt(cos^-2(pi t/2) - 1) for what
    # are arctangents and a tangent here: the same, but these do not cancel near t = 0.

    @property
    def t_min(self) -> float:
        """Smallest time drawn in training (epsilon_min of the paper)."""
        return 2 / math.pi * math.atan(math.exp(-0.5 * self.log_snr_max))

    @property
    def t_max(self) -> float:
        """Largest time drawn in training (epsilon_max of the paper)."""
        return 2 / math.pi * math.atan(math.exp(-0.5 * self.log_snr_min))

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
        return self.sigma(self.t_min + (self.t_max - self.t_min) * u)


class _NoisePrediction(Preconditioning):
    """The input is skipped to the output, and the loss weighs errors of the noise evenly."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2."""
        return sigma**-2


@dataclass(frozen=True)
class VP(_NoisePrediction):
    """D = x - sigma F, with t ~ U(epsilon_t, 1).

    sigma(t) = sqrt(exp(beta_d t^2/2 + beta_min t) - 1).

    Attributes:
        beta_d, beta_min: the schedule's slope and start.
        epsilon_t: smallest time drawn in training.
        M: number of times the network's noise label counts.

    Raises:
        InvalidRequest: a constant is not positive and finite, or epsilon_t is not below 1.
    """

    name: ClassVar[str] = "vp"

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5
    M: int = 1000

    def __post_init__(self) -> None:
        positive_number("VP's beta_d", self.beta_d)
        positive_number("VP's beta_min", self.beta_min)
        if not 0 < self.epsilon_t < 1:
            raise InvalidRequest(f"VP: expected 0 < epsilon_t < 1, found {self.epsilon_t}")
        if not 1 < self.M < math.inf:
            raise InvalidRequest(f"VP: expected an M of at least 2 times, found {self.M}")

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


@dataclass(frozen=True)
class VE(_NoisePrediction):
    """D = x + sigma F, with ln sigma ~ U(ln sigma_min, ln sigma_max).

    Attributes:
        sigma_min, sigma_max: range of the noise levels drawn in training.

    Raises:
        InvalidRequest: not 0 < sigma_min < sigma_max < infinity.
    """

    name: ClassVar[str] = "ve"

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _require_order(self, "sigma_min", "sigma_max", above=0)

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


def _require_order(of: Preconditioning, low: str, high: str, above: float) -> None:
    if not above < getattr(of, low) < getattr(of, high) < math.inf:
        raise InvalidRequest(
            f"{of.name}: expected {above:g} < {low} < {high} < infinity, found "
            f"{getattr(of, low)} and {getattr(of, high)}"
        )


PRECONDITIONINGS: dict[str, type[Preconditioning]] = {c.name: c for c in (VP, VE, V, EDM)}


def build_preconditioning(name: str, **constants: Any) -> Preconditioning:
    """Make the preconditioning called `name`, with the paper's constants but for those given.

    Raises:
        InvalidRequest: none of that name, no constant of a given name, or a value that the
            preconditioning refuses.
    """
    if name not in PRECONDITIONINGS:
        raise InvalidRequest(
            f"no preconditioning {name!r}: choose among {', '.join(PRECONDITIONINGS)}"
        )
    cls = PRECONDITIONINGS[name]
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(constants) - set(known))
    if unknown:
        raise InvalidRequest(
            f"preconditioning {name!r} has no constant {', '.join(unknown)}: "
            f"it has {', '.join(known)}"
        )
    return cls(**constants)
