"""Exponential moving average of a model's parameters.

Post-processing of parameters that are already private: it costs nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from privacy.errors import InvalidRequest


class EMA:
    """theta_ema <- decay theta_ema + (1 - decay) theta, kept in float32.

    Args:
        model: its parameters are the average's start.
        decay: in [0, 1).

    Raises:
        InvalidRequest: the decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InvalidRequest(f"EMA decay must lie in [0, 1), found {decay}")
        self.decay = decay
        # A clone even where the parameters are float32 already: the average must not alias them.
        self._average = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present parameters into the average; once after every step."""
        named = dict(model.named_parameters())
        averages = [self._average[name] for name in named]
        latest = [parameter.to(torch.float32) for parameter in named.values()]
        # All at once: to tell a GPU of each takes longer than what it does with it.
        torch._foreach_lerp_(averages, latest, 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's parameters by the average."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self._average[name])

    @contextmanager
    def apply_to(self, model: nn.Module) -> Iterator[nn.Module]:
        """Give the model with averaged parameters for a `with` block, then its own back."""
        own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.copy_to(model)
        try:
            yield model
        finally:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name: the weights that samplers use."""
        return {name: average.clone() for name, average in self._average.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averaged parameters that `state_dict` gave.

        Raises:
            InvalidRequest: names or shapes are not this model's; nothing is taken over.
        """
        expected = {name: tuple(average.shape) for name, average in self._average.items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrong = sorted(n for n in expected | found if expected.get(n) != found.get(n))
        if wrong:
            raise InvalidRequest(
                f"averaged weights do not fit the model: {len(wrong)} parameters are missing, "
                f"unknown or of another shape, the first is {wrong[0]!r} (expected "
                f"{expected.get(wrong[0], 'none')}, found {found.get(wrong[0], 'none')}); "
                "give the weights of a run with the same network"
            )
        for name, average in self._average.items():
            average.copy_(state[name])
