"""Many records at once: `vmap` over the gradient of one, best for small networks and on a GPU."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from privacy.gradients.base import (
    ClippedSum,
    RecordLoss,
    require_scalar,
    sum_over_micro_batches,
    trainable,
)
from privacy.gradients.clip_and_add import add_clipped


class VmapEngine:
    """Materialises the gradients of a micro-batch: its memory is micro-batch times parameters."""

    name = "vmap"

    def sum_of_clipped(
        self,
        model: nn.Module,
        loss: RecordLoss,
        records: tuple[Tensor, ...],
        clip_norm: float,
        micro_batch: int,
    ) -> ClippedSum:
        """See `GradientEngine.sum_of_clipped`."""

        def of_one(parameters: dict[str, Tensor], *record: Tensor) -> Tensor:
            def call(*args: Any, **kwargs: Any) -> Tensor:
                return functional_call(model, parameters, args, kwargs)

            return require_scalar(loss(call, *record))

        in_dims = (None, *[0] * len(records))
        per_record = vmap(grad_and_value(of_one), in_dims=in_dims, randomness="different")

        def add(sums: dict[str, Tensor], part: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            parameters = {name: p.detach() for name, p in trainable(model).items()}
            gradients, losses = per_record(parameters, *part)
            return losses, add_clipped(sums, gradients, clip_norm)

        # The fused kernels' backward passes cannot be batched: vmap would run them one by one.
        with sdpa_kernel(SDPBackend.MATH):
            return sum_over_micro_batches(model, records, clip_norm, micro_batch, add)
