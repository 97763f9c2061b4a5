"""Rules by the torch function that a layer calls; a layer without one is left to vmap."""

from collections.abc import Callable
from typing import Any

from torch.nn import functional

from privacy.gradients.rules.base import Rule, over_records
from privacy.gradients.rules.convolution import CONVOLUTION
from privacy.gradients.rules.embedding import EMBEDDING
from privacy.gradients.rules.group_norm import GROUP_NORM
from privacy.gradients.rules.linear import LINEAR

__all__ = ["RULES", "Rule", "over_records"]

RULES: dict[Callable[..., Any], Rule] = {
    functional.conv2d: CONVOLUTION,
    functional.embedding: EMBEDDING,
    functional.group_norm: GROUP_NORM,
    functional.linear: LINEAR,
}
