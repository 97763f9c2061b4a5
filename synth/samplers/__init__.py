"""The samplers by name."""

from dataclasses import fields
from typing import Any

from privacy.errors import InvalidRequest
from synth.inference import at_precision, chosen_batch
from synth.samplers.base import Denoise, Sampler
from synth.samplers.churn import Churn
from synth.samplers.ddim import DDIM, StochasticDDIM
from synth.samplers.guidance import guided

SAMPLERS: dict[str, type[Sampler]] = {s.name: s for s in (DDIM, StochasticDDIM, Churn)}

__all__ = [
    "DDIM",
    "SAMPLERS",
    "Churn",
    "Denoise",
    "Sampler",
    "StochasticDDIM",
    "at_precision",
    "chosen_batch",
    "guided",
    "sampler",
]


def sampler(name: str, **settings: Any) -> Sampler:
    """Make the sampler called `name`, with its default settings but for those given.

    Raises:
        InvalidRequest: no sampler of that name, no setting of a given name, or a value that the
            sampler refuses.
    """
    if name not in SAMPLERS:
        raise InvalidRequest(f"no sampler {name!r}: choose among {', '.join(SAMPLERS)}")
    known = [field.name for field in fields(SAMPLERS[name])]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidRequest(
            f"sampler {name!r} has no setting {', '.join(unknown)}: it has {', '.join(known)}"
        )
    return SAMPLERS[name](**settings)
