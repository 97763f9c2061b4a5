"""What Ray, the ledger, MLflow and checkpoints cost a training: a whole run beside its bare steps.

The run and the bare loop of the very same steps (same batches, masks and noise) are two processes
that take turns, a block of a few steps each, so that they meet the same machine. In a round the run
pays for its block: two questions to the ledger's actor, a charge that is synced to disk and a
checkpoint. That price is then spread over the steps of a block as specs have it by default.

Two answers are given:

- by the clock: the steps within a block of the run over the bare ones of the same round, plus the
  block's price. While either works, the run's other processes are there: beside the one worker they
  have the other cores.
- by the books: the block's price, plus the processor time that the run's other processes took
  while it trained, as a part of all cores; not what they took to charge, which is in the block's
  price. It is what a run loses that trains on every core, and hardly depends on what else a machine
  does.
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

STEP_SECONDS = 0.5
MOST = 0.03  # of a run
TOTALS = (200, 1000, 4500)  # steps T: a small run, a usual one, the paper's for MNIST

_BLOCK = 2  # steps of a turn: the shorter, the more alike is what both sides meet
_TRIAL_RECORDS, _TRIAL_STEPS = 128, 20


@dataclass(frozen=True)
class Orchestration:
    """What a run costs beside the bare loop of its steps; all times in seconds.

    Attributes:
        batch: B, chosen so that a step takes about half a second here.
        steps: T of the measured run.
        block: steps to a charge and to a checkpoint by default.
        bare_step: median step of the bare loop.
        step: steps within a block of the run over the same bare ones: median over the rounds,
            least and greatest.
        block_price: median of what a step that begins a block takes beyond its part of `step`.
        others_cpu: processor seconds a second in the run's other processes; None if not known.
        cores: that the processes share.
        fixed: what a run takes once: it, less its steps, its waiting, its other stages and what the
            bare loop takes to its first step's end.
    """

    batch: int
    steps: int
    block: int
    bare_step: float
    step: Ratio
    block_price: float
    others_cpu: float | None
    cores: int
    fixed: float

    @property
    def of_blocks(self) -> float:
        """The block's price as a part of a bare step."""
        return self.block_price / self.block / self.bare_step

    def by_the_clock(self) -> Ratio:
        """Return what a step costs more, as a part of a bare one: middle, least and greatest."""
        more = self.of_blocks - 1
        return Ratio(self.step.median + more, self.step.low + more, self.step.high + more)

    def by_the_books(self) -> float | None:
        """Return the same from the block's price and the other processes' part of all cores."""
        if self.others_cpu is None:
            return None
        return self.of_blocks + self.others_cpu / self.cores

    def share(self, growing: float, steps: int) -> float:
        """Return the orchestration's part of a whole run of so many steps.

        Args:
            growing: what a step costs more, as a part of a bare one.
            steps: T.
        """
        more = self.fixed + steps * growing * self.bare_step
        return more / (more + steps * self.bare_step)

    def steps_below(self, growing: float, share: float = MOST) -> int | None:
        """Return from how many steps on the orchestration's part is at most `share`, if ever."""
        room = share / (1 - share) - growing
        return math.ceil(self.fixed / (room * self.bare_step)) if room > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the shares of runs of several lengths."""
        growing = {"clock": self.by_the_clock().median, "books": self.by_the_books()}
        shares = {
            way: {str(T): self.share(more, T) for T in TOTALS}
            for way, more in growing.items()
            if more is not None
        }
        return asdict(self) | growing | {"shares": shares}


def orchestration(steps: int) -> Orchestration:
    """Measure a run of so many steps beside as many of the bare loop."""
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
    """Return the batch whose step takes half a second, from steps of a few records."""
    (inside,), _ = split(trial.steps, len(trial.steps))
    records = round(_TRIAL_RECORDS * STEP_SECONDS / statistics.median(inside))
    return max(1, min(SMALL.dataset, records))


def compared(
    batch: int, bare: Timed, run: Timed, bare_begun: float, run_seconds: float
) -> Orchestration:
    """Return the costs from what both processes measured.

    Args:
        batch: B of both.
        bare: the bare loop.
        run: the run.
        bare_begun: when the bare loop's process was started.
        run_seconds: seconds that the run's process took in all.
    """
    (bare_blocks, bare_first), (run_blocks, run_first) = (_rounds(timed) for timed in (bare, run))
    prices = [
        ours - plain * of_run / of_bare
        for ours, plain, of_run, of_bare in zip(
            run_first, bare_first, run_blocks[1:], bare_blocks[1:], strict=True
        )
    ]
    # From the end of the first step, which is like no other, to that of the last.
    span = run.steps[-1] - run.steps[0] + run.waited[0]
    bare_start = bare.steps[0] - bare_begun - bare.waited[0]
    return Orchestration(
        batch=batch,
        steps=len(run.steps),
        block=int(TrainSettings.model_fields["charge_block"].default),
        bare_step=statistics.median(bare_blocks) / (_BLOCK - 1),
        step=Ratio.of(run_blocks, bare_blocks),
        block_price=statistics.median(prices),
        others_cpu=run.others_cpu,
        cores=cores(),
        fixed=run_seconds - span - run.other_stages - bare_start,
    )


def split(times: Sequence[float], block: int) -> tuple[list[list[float]], list[float]]:
    """Return seconds of the steps within each block, and of those that begin one but the first.

    Args:
        times: when each step had been done.
        block: steps of a block.
    """
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # gaps[i] ends with step i + 1, counted from 0; a multiple of `block` begins a block.
    inside = [gaps[first : first + block - 1] for first in range(0, len(gaps), block)]
    return inside, gaps[block - 1 :: block]


def _rounds(timed: Timed) -> tuple[list[float], list[float]]:
    """Return seconds of all steps within each block, and of those that begin one, not waiting."""
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
