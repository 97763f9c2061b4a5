"""The four configs by name, and the denoiser they make of a network."""

from dataclasses import fields
from typing import Any

from privacy.errors import InvalidRequest
from synth.denoisers.base import Denoiser, DenoiserConfig
from synth.denoisers.edm import EDM
from synth.denoisers.v import V
from synth.denoisers.ve import VE
from synth.denoisers.vp import VP

CONFIGS: dict[str, type[DenoiserConfig]] = {c.name: c for c in (VP, VE, V, EDM)}

__all__ = ["CONFIGS", "EDM", "VE", "VP", "Denoiser", "DenoiserConfig", "V", "denoiser_config"]


def denoiser_config(name: str, **constants: Any) -> DenoiserConfig:
    """Make the config called `name`, with the paper's constants but for those given.

    Raises:
        InvalidRequest: no config of that name, no constant of a given name, or a value that the
            config refuses.
    """
    if name not in CONFIGS:
        raise InvalidRequest(f"no denoiser config {name!r}: choose among {', '.join(CONFIGS)}")
    cls = CONFIGS[name]
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(constants) - set(known))
    if unknown:
        raise InvalidRequest(
            f"denoiser config {name!r} has no constant {', '.join(unknown)}: "
            f"it has {', '.join(known)}"
        )
    return cls(**constants)
