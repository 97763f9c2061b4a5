"""What averages noise away: a moving average of the parameters, and a falling learning rate.

Parameters that do not require gradients are left alone.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from privacy.errors import InvalidRequest


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name; the others are a frozen backbone.

    >>> layer = nn.Linear(2, 1)
    >>> list(trainable(layer.requires_grad_(False))), list(trainable(nn.Linear(2, 1)))
    ([], ['weight', 'bias'])
    """
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state dict without its frozen parameters."""
    frozen = dict(model.named_parameters()).keys() - trainable(model).keys()
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `trained_state` returned; raises RuntimeError where it is another model's."""
    frozen = {n: v for n, v in model.state_dict().items() if n not in trained_state(model)}
    model.load_state_dict({**frozen, **state})


class EMA:
    """theta_ema <- decay theta_ema + (1 - decay) theta, kept in float32.

    Args:
        model: its trainable parameters are the average's start.
        decay: in [0, 1).

    Raises:
        InvalidRequest: the decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InvalidRequest(f"EMA decay: expected a number in [0, 1), found {decay}")
        self.decay = decay
        # A clone even where the parameters are float32 already: the average must not alias them.
        self._average = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in trainable(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present parameters into the average; once after every step."""
        latest = [value.to(torch.float32) for value in trainable(model).values()]
        # All at once: launching one operation a parameter takes a GPU longer than the arithmetic.
        torch._foreach_lerp_(list(self._average.values()), latest, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name."""
        return {name: average.clone() for name, average in self._average.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned; raise InvalidRequest where it is another model's."""
        expected = {(name, average.shape) for name, average in self._average.items()}
        found = {(name, tensor.shape) for name, tensor in state.items()}
        if found != expected:
            names = ", ".join(sorted({name for name, _ in found ^ expected}))
            raise InvalidRequest(
                f"averaged weights do not fit the model, expected its own names and shapes; these "
                f"differ: {names}; load the weights of a run with the same network"
            )
        for name, average in self._average.items():
            average.copy_(state[name])


def cosine(peak: float, step: int, steps: int) -> float:
    """Return peak (1 + cos(pi step / steps)) / 2: `peak` at step 0, zero at the end.

    >>> cosine(0.5, step=0, steps=100), cosine(0.5, step=50, steps=100)
    (0.5, 0.25)
    """
    # Late steps of DP-SGD carry as much noise as early ones; small ones at the end average it away.
    return peak * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
