"""The samplers by name.

A sampler is one file and one line in `SAMPLERS`. Their modules import torch, so a name maps to an
address that is resolved when the sampler is built: specs are checked without torch.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from privacy.errors import InvalidRequest

if TYPE_CHECKING:
    from synth.samplers.base import Sampler

SAMPLERS = {
    "ddim": "synth.samplers.ddim:DDIM",
    "ddim-stochastic": "synth.samplers.ddim:StochasticDDIM",
    "churn": "synth.samplers.churn:Churn",
}
# No solver: the model draws images itself (`synth.methods.DRAWING`).
DIRECT = "direct"


def sampler(name: str, **settings: Any) -> "Sampler":
    """Return the sampler called `name`, with its default settings but for those given.

    Raises:
        InvalidRequest: no sampler of that name, no setting of a given name, or a value that the
            sampler refuses.

    >>> sampler("ddim", steps=20).nfe
    20
    """
    if name not in SAMPLERS:
        raise InvalidRequest(f"no sampler {name!r}: choose among {', '.join(SAMPLERS)}")
    built: Sampler = resolve_name(SAMPLERS[name])(**settings)
    return built
