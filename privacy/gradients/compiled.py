"""Captured, and compiled before that: what many small operations do, a few kernels do at once.

Between products and convolutions a network's passes go through its feature maps again and again.
A compiler makes one kernel of operations that follow one another. It takes minutes, and pays where
a training is long.

It is shown a micro-batch's shapes, which are public, and no record. Clipping is not within what it
compiles: gradients come out of it into memory, and what is measured there is what is added up.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from privacy.gradients import cuda_graph
from privacy.gradients.base import RecordLoss
from privacy.gradients.captured import CapturedEngine, Gradients, called
from privacy.gradients.cuda_graph import Replayable
from privacy.gradients.fastest import Fastest
from privacy.gradients.per_record import OfRecords
from privacy.gradients.trace import trace

Compiler = Callable[[GraphModule, list[Tensor]], Callable[..., Any]]

# Of a record's gradient: a wrong kernel is far beyond, and what bfloat16 rounds is within.
_TOLERANCE = 0.03


def inductor(graph: GraphModule, example: list[Tensor]) -> Callable[..., Any]:
    """Compile by torch's own compiler, which wants Triton on a GPU and a C++ compiler on a CPU."""
    # Imported here: few trainings are compiled.
    from torch._inductor import compile

    with torch.no_grad():
        return compile(graph, [*example])


class CompiledEngine(CapturedEngine):
    """A captured engine whose gradients are compiled; where they cannot be it is a captured one."""

    name = "compiled"

    def __init__(
        self, replayable: Replayable = cuda_graph.replayable, compiler: Compiler = inductor
    ) -> None:
        """Compile by `compiler` and capture by `replayable`."""
        super().__init__(replayable, partial(compiled, compiler=compiler))
        self._compiler = compiler

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledEngine, (self._replayable, self._compiler)


def compiled(
    model: nn.Module, loss: RecordLoss, records: tuple[Tensor, ...], compiler: Compiler
) -> Gradients:
    """Return per-record gradients as a function of as many records like these: the fastest way.

    What is compiled is tried on numbers of its own, and is one of the ways if it gives what the
    operations give and lets no record's numbers reach another's gradient. Otherwise, and where the
    compiler fails, the operations are the only way and a warning says so: no less right.

    Args:
        model: of `GradientEngine.sum_of_clipped`, as is `loss`.
        loss: likewise.
        records: tensors [B, ...], of which only shape, type and device matter.
        compiler: what compiles.

    Raises:
        torch.OutOfMemoryError: there is no room for the operations.
    """
    plain, numbers = called(model, loss, records), _numbers_like(records)
    # By operations first: without room for them, minutes of compiling would be lost.
    expected = _projections(plain(*numbers))
    try:
        traced = trace(model, loss, numbers)
        fast = replace(traced, graph=compiler(traced.graph, [*traced.state, *numbers]))
        found = _projections(fast(*numbers))
        beside = _projections(fast(*_spoiled(numbers)))
    except Exception as error:  # a compiler may fail in any way
        return _instead(plain, f"compiling failed with {type(error).__name__}")
    if not _close(found, expected):
        return _instead(plain, "what was compiled gave other gradients")
    if not _close(beside[1:], expected[1:]):
        return _instead(plain, "what was compiled let a record reach another's gradient")
    return Fastest(plain, fast)


def _numbers_like(records: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return numbers in (0.1, 1.1), which serve as images and as noise levels, and labels 0."""
    generator = torch.Generator().manual_seed(0)

    def like(part: Tensor) -> Tensor:
        if not part.is_floating_point():
            return torch.zeros_like(part)
        return (0.1 + torch.rand(part.shape, generator=generator)).to(part)

    return tuple(like(part) for part in records)


def _spoiled(records: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the records with a first one that is not finite."""
    copies = tuple(part.clone() for part in records)
    for part in copies:
        if part.is_floating_point():
            part[0] = torch.nan
    return copies


def _projections(of_records: OfRecords) -> Tensor:
    """Return the loss and each parameter's gradient, summed up with random signs, of each record.

    A few numbers [B, P + 1] in place of all gradients, for which there may be no room twice.
    """
    losses, by_parameter = of_records
    generator = torch.Generator().manual_seed(0)

    def signed_sum(gradients: Tensor) -> Tensor:
        vectors = gradients.reshape(len(gradients), -1)
        signs = torch.randint(0, 2, vectors.shape[1:], generator=generator) * 2 - 1
        return vectors @ signs.to(vectors)

    return torch.stack([losses, *map(signed_sum, by_parameter.values())], dim=1).double()


def _close(found: Tensor, expected: Tensor) -> bool:
    """Say whether losses are, and gradients: each by itself, for either may be far larger."""
    apart = [1, expected.shape[1] - 1]
    pairs = zip((found - expected).split(apart, dim=1), expected.split(apart, dim=1), strict=True)
    # What is not a number is not close to anything.
    return all(bool((e.norm(dim=1) <= _TOLERANCE * x.norm(dim=1)).all()) for e, x in pairs)


def _instead(plain: Gradients, reason: str) -> Gradients:
    warnings.warn(
        f"gradients are computed operation by operation: {reason}", RuntimeWarning, stacklevel=3
    )
    return plain
