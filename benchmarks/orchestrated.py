"""One training in its own process: as a whole run on Ray, or as the bare loop of its steps.

`python -m benchmarks.orchestrated run|bare|trial BATCH STEPS BLOCK FOLDER` prints a line of JSON.
A run and a bare loop with the same folder take turns, block by block.
"""

import atexit
import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic, thread_time
from typing import Any
from unittest.mock import patch

import torch
import yaml

from pipeline.cluster import connection
from pipeline.home import Home
from pipeline.models import build_denoiser
from pipeline.plan import build_method, plan
from pipeline.runs.engine import execute, submit
from pipeline.runs.ledger_access import LedgerAccess
from pipeline.spec import Spec, parse_spec
from privacy.budget import Budget, Reservation
from privacy.collective import SingleProcess
from privacy.keystream import os_key
from privacy.ledger import Head
from privacy.ledger.records import Facts
from privacy.records import own
from synth.methods.base import Attempt
from synth.methods.diffusion import Diffusion
from synth.records import Records
from synth.training import Trainer

from .processes import cpu_seconds, others
from .turns import Turns
from .workload import SMALL

BARE, RUN, TRIAL = "bare", "run", "trial"
READY = "ready"  # a file: the bare loop waits for its turn
_IN_TURNS = "in-turns.json"
_TIMES = "times.txt"
_TRAIN = "train"
_BETWEEN_READINGS = 10.0  # seconds; reading takes CPU time too


@dataclass(frozen=True)
class Timed:
    """The times of one training.

    Attributes:
        steps: at which each step ended, in seconds on one clock.
        waited: seconds that this process waited for its turn, before each block.
        other_stages: seconds of the run's stages other than training.
        others_cpu: CPU seconds per second between the first and the last step, of all processes of
            the run but the worker, without the charges, for which the worker waits. None if
            unknown.
    """

    steps: tuple[float, ...]
    waited: tuple[float, ...] = ()
    other_stages: float = 0.0
    others_cpu: float | None = None


def spec_of(batch: int, steps: int, block: int) -> Spec:
    """Return the spec of the training: 8x8, 0.19 M parameters, K = 8, otherwise defaults.

    Args:
        batch: B, which determines the time of a step.
        steps: T.
        block: steps between charges and between checkpoints.
    """
    network = SMALL.network
    sections = {
        "name": "bench",
        "data": {
            "name": "digits",
            "source": {"kind": "digits", "split": "train"},
            "records": SMALL.dataset,
            "size": network.size,
            "channels": network.channels,
            "classes": [str(label) for label in range(network.classes)],
            "public": True,
        },
        # With a seed both processes draw the same batches; otherwise sizes differ by a tenth.
        "privacy": {"epsilon": 5.0, "delta": 1e-4, "seed": 0},
        "model": {
            "base": network.base,
            "multipliers": list(network.multipliers),
            "blocks": network.blocks,
            "attention": list(network.attention),
        },
        "train": {
            "batch": batch,
            "steps": steps,
            "views": SMALL.views,
            "charge_block": block,
            "checkpoint_every": block,
        },
        "synthesize": {"images": 10, "sampler": "ddim", "steps": 2},
    }
    return parse_spec(yaml.safe_dump(sections))


def run(spec: Spec, folder: Path) -> Timed:
    """Execute a whole run in a new home: ledger, MLflow, Ray, checkpoints as for a user."""
    home = Home.locate({"UMBRA_HOME": str(folder / "home")}).ensure()
    Budget(LedgerAccess.of(home).open()).declare(
        spec.data.name, 10.0, spec.privacy.delta, Facts(public=spec.data.public)
    )
    watch = _Watch(folder / _TIMES)
    # Patching imports Ray earlier than the engine does; these must be set before.
    os.environ.update(connection._EVERYWHERE | connection._LOOPBACK | connection._TOKEN)
    with (
        patch("pipeline.cluster.training.TrainingWorker", _timed_worker(watch.file)),
        patch("pipeline.cluster.budget_actor.budget_manager", partial(_manager_in_turns, folder)),
    ):
        state = execute(submit(spec, home, embedded=True), home, watch)
    other = sum(stage.seconds for stage in state.stages if stage.name not in ("ingest", _TRAIN))
    in_turns = json.loads((folder / _IN_TURNS).read_text())
    others_cpu = watch.others_cpu(in_turns["charging"])
    return Timed(tuple(watch.times), tuple(in_turns["waited"]), other, others_cpu)


def bare(spec: Spec, folder: Path) -> Timed:
    """Take the same steps in this process, without Ray, ledger, MLflow and checkpoints."""
    return _loop(spec, folder, Turns(folder, 0))


def trial(spec: Spec, folder: Path) -> Timed:
    """Take the steps of the bare loop without turns."""
    return _loop(spec, folder, None)


def _loop(spec: Spec, folder: Path, turns: Turns | None) -> Timed:
    # It imports Ray, which the run imports after it has set what Ray reads then.
    from pipeline.cluster.actor_group import tune_malloc

    data, T = spec.data, spec.train.steps
    torch.set_num_threads(spec.resources.cpus_per_worker)
    tune_malloc()  # as a worker does
    components = plan(spec, trial=False).components
    reserved = Reservation(
        "bench", "bench", data.name, data.records, "image", 1, False, None, components, Head(0, "")
    )
    method = build_method(spec)
    assert isinstance(method, Diffusion)
    denoiser = build_denoiser(spec)
    training = method.training(reserved.plan, denoiser)
    settings = training.settings.model_copy(update={"checkpoint_every": training.steps})
    times: list[float] = []
    attempt = Attempt.start(1, os_key(), spec.privacy.seed, SingleProcess())
    batches = data.source.batches(data.size, data.channels, data.classes)
    trainer = Trainer(
        replace(training, settings=settings),
        denoiser,
        Records.of(own(batches, attempt.key, 0, 1, data.records), torch.device("cpu")),
        attempt,
        _Unlimited(training.steps, turns),
        folder,
        on_progress=lambda phase, done, total: times.append(monotonic()),
    )
    (folder / READY).touch()
    trainer.run()
    assert len(times) == T
    return Timed(tuple(times), tuple(turns.waited) if turns else ())


class _Unlimited:
    """A meter that grants a number of steps and, with turns, gives the turn after each block."""

    def __init__(self, steps: int, turns: Turns | None) -> None:
        self._left = steps
        self._turns = turns

    def charge(self, component: str, steps: int) -> str:
        self._left -= steps
        if self._turns:
            self._turns.take()
        return ""

    def remaining(self, component: str) -> int:
        if self._turns and self._turns.waited:
            self._turns.give()
        return self._left


def _manager_in_turns(folder: Path, access: LedgerAccess) -> Any:
    """Start a budget manager that charges a block when it is the run's turn."""
    import ray

    from pipeline.cluster.budget_actor import BudgetManager

    class InTurns(BudgetManager):
        def __init__(self, access: LedgerAccess) -> None:
            super().__init__(access)
            self._turns = Turns(folder, 1)
            self._charging: list[tuple[float, float]] = []  # time, CPU seconds

        def charge(self, *of: Any) -> Any:
            self._turns.give()
            self._turns.take()
            begun = thread_time()
            receipt = super().charge(*of)
            self._charging.append((monotonic(), thread_time() - begun))
            noted = {"waited": self._turns.waited, "charging": self._charging}
            (folder / _IN_TURNS).write_text(json.dumps(noted))
            return receipt

    # With two threads the process idles as usual while a charge waits for its turn.
    return ray.remote(InTurns).options(num_cpus=0, max_concurrency=2).remote(access)


def _timed_worker(file: Path) -> type:
    """Return a training worker that writes the time of each step to a file."""
    from pipeline.cluster.training import TrainingWorker

    class TimedWorker(TrainingWorker):
        def _count_steps(self, phase: str, done: int, total: int) -> None:
            with file.open("a") as times:
                times.write(f"{monotonic()}\n")
            super()._count_steps(phase, done, total)

    return TimedWorker


@dataclass
class _Watch:
    """A run's progress that reads CPU times meanwhile and, at the end, the times of the steps."""

    file: Path
    times: list[float] = field(default_factory=list)
    _cpu: list[tuple[float, dict[int, float]]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator["_Watch"]:
        """See `Progress.stage`."""
        yield self
        if name == _TRAIN:
            self.times = [float(line) for line in self.file.read_text().split()]

    def advance(self, n: int = 1) -> None:
        """See `Stage.advance`."""

    def reach(self, done: int) -> None:
        """Read CPU times during training."""
        now = monotonic()
        if done > 0 and (not self._cpu or now - self._cpu[-1][0] > _BETWEEN_READINGS):
            self._cpu.append((now, cpu_seconds(os.getpid())))

    def others_cpu(self, charging: Sequence[tuple[float, float]] = ()) -> float | None:
        """Return CPU seconds per second of all processes but the busiest, which is the worker.

        Args:
            charging: times at which others had charged, and its CPU seconds, which do not count.
        """
        inside = [reading for reading in self._cpu if reading[0] < self.times[-1] and reading[1]]
        if len(inside) < 2:
            return None
        (begun, before), (ended, after) = inside[0], inside[-1]
        charges = sum(seconds for when, seconds in charging if begun < when <= ended)
        return (others(before, after) - charges) / (ended - begun)


def main() -> None:
    """Train as the arguments say."""
    atexit.register(gc.freeze)  # as `umbra` does
    way, batch, steps, block, folder = sys.argv[1:]
    spec = spec_of(int(batch), int(steps), int(block))
    print(json.dumps(asdict({RUN: run, BARE: bare, TRIAL: trial}[way](spec, Path(folder)))))


if __name__ == "__main__":
    main()
