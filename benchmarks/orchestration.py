"""The cost of Ray, ledger, MLflow and checkpoints: a whole run against its bare training steps.

The run and a bare loop over the same steps (same batches, masks and noise) are two processes that
take turns, a block of a few steps each, so that they see the same machine. In each block the run
makes two calls to the budget actor, a charge that is synced to disk and a checkpoint. Their cost is
then spread over the steps of a block of the default size.

The overhead of a step is computed in two ways:

- by wall clock: the steps of the run within a block over the bare steps of the same round, plus the
  cost of a block. The run's other processes use the cores that its one worker does not.
- by CPU time: the cost of a block, plus the CPU time of the run's other processes while it trained
  as a fraction of all cores, without the charges, which are in the cost of a block. A run that
  trains on all cores loses as much, and the figure hardly depends on other load.
"""

import json
import math
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from synth.settings import TrainSettings

from .machine import cores
from .orchestrated import BARE, READY, RUN, TRIAL, Timed
from .processes import last_line, start
from .timing import Ratio
from .workload import SMALL

STEP_SECONDS = 0.25
MAX_SHARE = 0.03  # of a run
TOTALS = (200, 1000, 4500)  # steps T: a small run, a usual one, the paper's for MNIST

_BLOCK = 2  # steps of a turn: the shorter, the more alike is what both sides meet
_TRIAL_RECORDS, _TRIAL_STEPS = 128, 20


@dataclass(frozen=True)
class Orchestration:
    """The cost of a run beyond the bare loop of its steps; all times in seconds.

    Attributes:
        batch: B, chosen so that a step takes about a quarter of a second here.
        steps: T of the measured run.
        block: default number of steps between charges and between checkpoints.
        bare_step: median step of the bare loop.
        step: ratio of the run's steps within a block to the same bare steps.
        block_cost: median extra time of a step that begins a block.
        others_cpu: CPU seconds per second of the run's other processes; None if unknown.
        cores: that the processes share.
        fixed: cost of a run however long: its time without steps, waiting and other stages, less
            the time of the bare loop until its first step ends.
    """

    batch: int
    steps: int
    block: int
    bare_step: float
    step: Ratio
    block_cost: float
    others_cpu: float | None
    cores: int
    fixed: float

    @property
    def of_blocks(self) -> float:
        """The cost of a block, spread over its steps, as a fraction of a bare step."""
        return self.block_cost / self.block / self.bare_step

    def by_wall_clock(self) -> Ratio:
        """Return the overhead of a step as a fraction of a bare one."""
        more = self.of_blocks - 1
        return Ratio(self.step.median + more, self.step.low + more, self.step.high + more)

    def by_cpu_time(self) -> float | None:
        """Return the same from the cost of a block and the other processes' CPU time."""
        if self.others_cpu is None:
            return None
        return self.of_blocks + self.others_cpu / self.cores

    def share(self, overhead: float, steps: int) -> float:
        """Return the share of orchestration in a whole run of `steps` steps.

        Args:
            overhead: of a step, as a fraction of a bare one.
            steps: T.
        """
        more = self.fixed + steps * overhead * self.bare_step
        return more / (more + steps * self.bare_step)

    def steps_below(self, overhead: float, share: float = MAX_SHARE) -> int | None:
        """Return the number of steps from which the share is at most `share`, if there is one."""
        room = share / (1 - share) - overhead
        return math.ceil(self.fixed / (room * self.bare_step)) if room > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the shares of runs of several lengths."""
        overhead = {"wall": self.by_wall_clock().median, "CPU": self.by_cpu_time()}
        shares = {
            way: {str(T): self.share(more, T) for T in TOTALS}
            for way, more in overhead.items()
            if more is not None
        }
        return asdict(self) | overhead | {"shares": shares}


def orchestration(steps: int) -> Orchestration:
    """Measure a run of `steps` steps and as many of the bare loop."""
    with (
        tempfile.TemporaryDirectory(prefix="umbra-bench-") as folder,
        tempfile.TemporaryDirectory(prefix="umbra-bench-") as trial_folder,
    ):
        trial = _start(TRIAL, _TRIAL_RECORDS, _TRIAL_STEPS, trial_folder)
        batch = calibrated(Timed(**_answer(trial)))
        begun = monotonic()
        bare = _start(BARE, batch, steps, folder)
        try:
            _wait_for(Path(folder) / READY, bare)
            ready = monotonic()
            run = Timed(**_answer(_start(RUN, batch, steps, folder)))
            ended = monotonic()
            # One clock for all processes of a machine.
            return compared(batch, Timed(**_answer(bare)), run, begun, ended - ready)
        finally:
            bare.kill()
            bare.wait()


def calibrated(trial: Timed) -> int:
    """Return the batch whose step takes a quarter of a second, given steps of a few records."""
    (inside,), _ = split(trial.steps, len(trial.steps))
    records = round(_TRIAL_RECORDS * STEP_SECONDS / statistics.median(inside))
    return max(1, min(SMALL.dataset, records))


def compared(
    batch: int, bare: Timed, run: Timed, bare_begun: float, run_seconds: float
) -> Orchestration:
    """Return the costs from the measurements of both processes.

    Args:
        batch: B of both.
        bare: the bare loop.
        run: the run.
        bare_begun: when the process of the bare loop was started.
        run_seconds: total seconds of the run's process.
    """
    (bare_blocks, bare_first), (run_blocks, run_first) = (_rounds(timed) for timed in (bare, run))
    costs = [
        ours - plain * of_run / of_bare
        for ours, plain, of_run, of_bare in zip(
            run_first, bare_first, run_blocks[1:], bare_blocks[1:], strict=True
        )
    ]
    # From the end of the first step, which includes start-up, to that of the last.
    span = run.steps[-1] - run.steps[0] + run.waited[0]
    bare_start = bare.steps[0] - bare_begun - bare.waited[0]
    return Orchestration(
        batch=batch,
        steps=len(run.steps),
        block=int(TrainSettings.model_fields["charge_block"].default),
        bare_step=statistics.median(bare_blocks) / (_BLOCK - 1),
        step=Ratio.of(run_blocks, bare_blocks),
        block_cost=statistics.median(costs),
        others_cpu=run.others_cpu,
        cores=cores(),
        fixed=run_seconds - span - run.other_stages - bare_start,
    )


def split(times: Sequence[float], block: int) -> tuple[list[list[float]], list[float]]:
    """Return seconds of the steps within each block, and of the steps that begin one.

    Args:
        times: at which each step ended.
        block: steps of a block.
    """
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # gaps[i] ends with step i + 1, counted from 0; a multiple of `block` begins a block.
    inside = [gaps[first : first + block - 1] for first in range(0, len(gaps), block)]
    return inside, gaps[block - 1 :: block]


def _rounds(timed: Timed) -> tuple[list[float], list[float]]:
    """Return seconds of the steps within each block, and of those that begin one, less waiting."""
    inside, between = split(timed.steps, _BLOCK)
    # The first block was waited for before its first step, which is in neither.
    first = [gap - waited for gap, waited in zip(between, timed.waited[1:], strict=True)]
    return [sum(block) for block in inside], first


def _start(way: str, batch: int, steps: int, folder: str) -> subprocess.Popen[str]:
    return start("benchmarks.orchestrated", way, batch, steps, _BLOCK, folder)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    return dict(json.loads(last_line(process)))


def _wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        if process.poll() is not None:
            last_line(process)
        sleep(0.05)
