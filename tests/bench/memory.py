"""Peak memory of a step: every way in a process of its own, above what was there before it."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from privacy.gradients import ENGINES

from .opacus_peer import OpacusPeer
from .steps import LIMIT, non_private
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


def peaks() -> Iterator[Peak]:
    """Measure all ways at equal micro-batch, then one at growing B and K: it should stay flat."""
    for name, n in (("small", 32), ("paper", 4)):
        for way in (LIMIT, *ENGINES, _OPACUS):
            yield _measure(name, way, n, n)
    for name, n in (("paper", 4), ("paper", 16), ("paper, K=32", 4)):
        yield _measure(name, "record", n, 4)


def _measure(name: str, way: str, n: int, micro_batch: int) -> Peak:
    command = [sys.executable, "-m", "tests.bench.memory", name, way, str(n), str(micro_batch)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Peak(_WORKLOADS[name].name, way, n, micro_batch, float(shown.split()[-1]))


def _peak(workload: Workload, way: str, n: int, micro_batch: int) -> float:
    denoiser, records, loss = workload.denoiser(), workload.records(n), workload.loss()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == LIMIT:
        non_private(denoiser, records, micro_batch)
    elif way == _OPACUS:
        OpacusPeer(denoiser, 1.0).sums(records, micro_batch)
    else:
        ENGINES[way].sum_of_clipped(denoiser, loss, records, 1.0, micro_batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / _MIB


if __name__ == "__main__":
    name, way, n, micro_batch = sys.argv[1:]
    print(_peak(_WORKLOADS[name], way, int(n), int(micro_batch)))
