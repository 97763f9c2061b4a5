"""Raw networks F(x; c_noise, y) that a denoiser wraps."""

from synth.networks.unet import UNet, UNetConfig

__all__ = ["UNet", "UNetConfig"]
