"""Peak memory of a step: each way in its own process, above what the process held before.

On a GPU the device's memory is measured, without weights and records.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from privacy.gradients import ENGINES

from .opacus_peer import OpacusPeer
from .processes import last_line, peak_bytes, start
from .steps import LIMIT, non_private, sum_of_clipped
from .workload import PAPER, PAPER_K32, SMALL, Workload

_WORKLOADS = {"small": SMALL, "paper": PAPER, "paper, K=32": PAPER_K32}
_OPACUS = "Opacus, K forwards"
_MIB = 2**20


@dataclass(frozen=True)
class Peak:
    """Peak memory of one way at one size.

    Attributes:
        workload: the size's name.
        way: an engine, the non-private step or Opacus.
        records: n in the step.
        micro_batch: records at a time.
        mib: above what the process held before the step.
    """

    workload: str
    way: str
    records: int
    micro_batch: int
    mib: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


# Size, way, records, micro-batch: all ways at the same micro-batch, then one at growing B and K,
# where memory should stay flat.
QUICK_PEAKS = [("small", way, 32, 32) for way in (LIMIT, "layerwise", _OPACUS)]
PEAKS = [
    *(("small", way, 32, 32) for way in (LIMIT, *ENGINES, _OPACUS)),
    *(("paper", way, 4, 4) for way in (LIMIT, *ENGINES, _OPACUS)),
    *((size, "record", n, 4) for size, n in (("paper", 4), ("paper", 16), ("paper, K=32", 4))),
]


def peaks(wanted: Sequence[tuple[str, str, int, int]]) -> Iterator[Peak]:
    """Measure each size, way, number of records and micro-batch."""
    for name, way, n, micro_batch in wanted:
        yield _measure(name, way, n, micro_batch)


def _measure(name: str, way: str, n: int, micro_batch: int) -> Peak:
    mib = float(last_line(start("benchmarks.memory", name, way, n, micro_batch)))
    return Peak(_WORKLOADS[name].name, way, n, micro_batch, mib)


def _peak(workload: Workload, way: str, n: int, micro_batch: int) -> float:
    denoiser, records, loss = workload.denoiser(), workload.records(n), workload.loss()
    before = _most_bytes(workload.kind)
    if way == LIMIT:
        non_private(denoiser, records, micro_batch)
    elif way == _OPACUS:
        OpacusPeer(denoiser, 1.0).sums(records, micro_batch)
    else:
        sum_of_clipped(ENGINES[way], denoiser, loss, records, 1.0, micro_batch)
    return (_most_bytes(workload.kind) - before) / _MIB


def _most_bytes(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_bytes()


if __name__ == "__main__":
    name, way, n, micro_batch = sys.argv[1:]
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    print(_peak(replace(_WORKLOADS[name], kind=kind), way, int(n), int(micro_batch)))
