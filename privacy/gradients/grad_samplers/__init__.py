"""Rules by the torch function that a layer calls; a layer without one is left to vmap."""

from collections.abc import Callable
from typing import Any

from torch.nn import functional

from privacy.gradients.grad_samplers.base import Rule
from privacy.gradients.grad_samplers.convolution import CONVOLUTION
from privacy.gradients.grad_samplers.group_norm import GROUP_NORM
from privacy.gradients.grad_samplers.linear import EMBEDDING, LINEAR

RULES: dict[Callable[..., Any], Rule] = {
    functional.conv2d: CONVOLUTION,
    functional.embedding: EMBEDDING,
    functional.group_norm: GROUP_NORM,
    functional.linear: LINEAR,
}
