"""Many records at once: `vmap` over the gradient of one, best for small networks and on a GPU."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from privacy.clipping import clip_factors
from privacy.gradients.base import (
    ClippedSum,
    RecordLoss,
    buffers_unchanged,
    check_request,
    require_scalar,
    trainable,
)
from privacy.gradients.clip_and_add import add_clipped, joint_norms


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
        n = check_request(model, records, clip_norm, micro_batch)
        parameters = {name: p.detach() for name, p in trainable(model).items()}
        result = ClippedSum.zeros(parameters, n)

        def of_one(parameters: dict[str, Tensor], *record: Tensor) -> Tensor:
            def call(*args: Any, **kwargs: Any) -> Tensor:
                return functional_call(model, parameters, args, kwargs)

            return require_scalar(loss(call, *record))

        in_dims = (None, *[0] * len(records))
        per_record = vmap(grad_and_value(of_one), in_dims=in_dims, randomness="different")
        # The fused kernels' backward passes cannot be batched: vmap would run them one by one.
        with buffers_unchanged(model), sdpa_kernel(SDPBackend.MATH):
            for start in range(0, n, micro_batch):
                chunk = slice(start, start + micro_batch)
                gradients, result.losses[chunk] = per_record(
                    parameters, *[part[chunk] for part in records]
                )
                result.norms[chunk] = joint_norms(gradients)
                factors = clip_factors(result.norms[chunk], clip_norm)
                add_clipped(result.sums, gradients, factors)
        return result
