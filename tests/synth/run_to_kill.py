"""A run's whole life, told step by step in a journal, so that it can be killed anywhere in it.

As a program this file imports everything once and then forks a life for every line on its standard
input: a start costs milliseconds, and nothing is inherited from the process that tests.
"""

import gc
import hashlib
import json
import os
import secrets
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import synth.training
from privacy.accounting import accountant
from privacy.budget import Budget, Component, Reservation
from privacy.budget.identity import content_of
from privacy.collective import SingleProcess
from privacy.dp_sgd import DPSGD
from privacy.errors import BudgetRefused, UmbraError
from privacy.ledger import Ledger
from privacy.mechanisms import Gaussian, Mechanism
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from privacy.records import LabelledRecords
from synth.checkpoint import newest
from synth.methods.base import Attempt
from synth.preconditioning import EDM, Denoiser
from synth.settings import TrainSettings, WarmupSettings
from synth.training import PRIVATE, WARMUP, Trainer, Training
from tests.builders import records_of

KEY, SEED = bytes(range(32)), bytes(range(32, 64))
STEPS, RUNS = 12, 60  # of one run; runs that the budget has room for
DATASET, DELTA = "toy", 1e-3
PHASES = (
    "open", "reserve", "attempt", "restore", "charge warm-up", "warm-up", "charge", "train",
    "save", "settle", "export",
)  # fmt: skip

DPSGD_STEP = DPSGD(records=20, sampling_probability=0.2, noise_multiplier=6.0, clip_norm=1.0)
QUERY = WarmupSettings(noise_multiplier=12.0, clip_norm=1.0, steps=3, batch=4, learning_rate=0.01)
QUERY_DRAWS = 2 * 4 * 4  # normals of the warm-up's one draw, of all classes and pixels
STEP_DRAWS = (9, 1)  # normals that a step draws: weights and bias
IMAGES = np.arange(20 * 4 * 4, dtype=np.uint8).reshape(20, 4, 4, 1)
LABELS = np.arange(20, dtype=np.int64) % 2


def mechanisms(steps: int, queries: int) -> list[Mechanism]:
    """What so many steps and warm-up queries are, whichever runs took them."""
    return [DPSGD_STEP.mechanism(steps), Gaussian(QUERY.noise_multiplier, queries)]


def plan(steps: int, queries: int) -> list[Component]:
    """The same as a plan."""
    names = (PRIVATE, WARMUP)
    return [Component(*pair) for pair in zip(names, mechanisms(steps, queries), strict=True)]


# Exactly what all runs cost together: one step more is one too many.
EPSILON = accountant("rdp").epsilon(mechanisms(RUNS * STEPS, RUNS), DELTA) * (1 + 1e-9)


@dataclass(frozen=True)
class Life:
    """One start of a run.

    Attributes:
        home: folder of the ledger, its witness and every run's checkpoints.
        run: the run's id.
        journal: file that this start is told in.
        give_up: whether it only gives back what was never charged.
    """

    home: str
    run: str
    journal: str
    give_up: bool

    def open(self) -> Ledger:
        """The signed ledger, as the owner of both keys opens it."""
        home = Path(self.home)
        witness = home / "ledger.head"
        return Ledger.open(
            home / "ledger.db", KEY, signing_key=SEED, author=self.run, witness=witness
        )

    def reserve(self, budget: Budget, key: str, components: list[Component]) -> Reservation:
        """Reserve a plan for this run."""
        content = content_of(LabelledRecords(IMAGES, LABELS), KEY)
        return budget.reserve(
            self.run, DATASET, content, "one image", records_per_unit=1, plan=components,
            void=False, idempotency_key=key,
        )  # fmt: skip


class Journal:
    """Lines that a SIGKILL cannot take back: each is with the kernel before the next thing."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def phase(self, name: str) -> None:
        self.write("phase", time.monotonic(), name)


class Meter:
    """Charges as the pipeline's does: under a fresh key a call."""

    def __init__(self, journal: Journal, budget: Budget, reservation: str, attempt: int) -> None:
        self._journal, self._budget = journal, budget
        self._reservation, self._attempt = reservation, attempt

    def remaining(self, component: str) -> int:
        planned = self._budget.reservation(self._reservation).component(component)
        return planned.mechanism.steps - self._budget.charged_steps(self._reservation)[component]

    def charge(self, component: str, steps: int) -> str:
        self._journal.phase("charge warm-up" if component == WARMUP else "charge")
        self._journal.write("asks", component, steps)
        key = secrets.token_hex(16)
        receipt = self._budget.charge(self._reservation, component, steps, self._attempt, key)
        self._journal.write("charged", component, steps)
        self._journal.write("head", receipt.head)
        self._journal.phase("warm-up" if component == WARMUP else "train")
        return str(receipt.head)


def watch(journal: Journal) -> None:
    """Have every draw told before it is made, and every checkpoint."""
    mask, normal = PoissonSampler.mask, SecureGaussian.standard_normal
    save, keep_last = synth.training.save, synth.training.keep_last

    def told_mask(self, step, ids):
        journal.write("mask", hashlib.sha256(self.key).hexdigest()[:16], self.attempt, step)
        return mask(self, step, ids)

    def told_normal(self, size):
        journal.write("noise", size)
        drawn = normal(self, size)
        journal.write("drawn", hashlib.sha256(drawn.tobytes()).hexdigest())
        return drawn

    def told_save(*args):
        journal.phase("save")
        return save(*args)

    def told_keep_last(*args):
        keep_last(*args)
        journal.phase("train")

    PoissonSampler.mask, SecureGaussian.standard_normal = told_mask, told_normal
    synth.training.save, synth.training.keep_last = told_save, told_keep_last


def live(life: Life) -> None:
    """Go on with a run from wherever it stands to its end, as the pipeline does."""
    journal = Journal(life.journal)
    watch(journal)
    journal.phase("open")
    ledger = life.open()
    ledger.start_signing(SEED)
    budget = Budget(ledger)
    budget.declare(DATASET, EPSILON, DELTA)
    journal.phase("reserve")
    reservation = life.reserve(budget, life.run, plan(STEPS, 1))
    journal.write("head", reservation.head)
    if not life.give_up:
        train(life, journal, budget, reservation.id)
    journal.phase("settle")
    journal.write("head", budget.settle(reservation.id).head)
    found = newest(Path(life.home, life.run)).checkpoint
    if found is not None and found.step and not life.give_up:
        journal.phase("export")
        manifest = hashlib.sha256(life.run.encode()).hexdigest()
        used = {PRIVATE: found.step}
        journal.write("head", budget.record_export(reservation.id, manifest, "weights", used))
    journal.phase("done")


def train(life: Life, journal: Journal, budget: Budget, reservation: str) -> None:
    """Take a new attempt at what was never charged."""
    journal.phase("attempt")
    try:
        number = budget.begin_attempt(reservation, secrets.token_hex(16))
    except BudgetRefused:
        return  # settled: an earlier start was killed between its settlement and its end
    journal.write("begun", number)
    journal.phase("restore")
    training = Training(
        dpsgd=DPSGD_STEP,
        steps=STEPS,
        classes=2,
        label_dropout=0.1,
        micro_batch=8,
        settings=TrainSettings(
            batch=8, steps=STEPS, views=2, learning_rate=0.01, ema=0.9, charge_block=2,
            checkpoint_every=3, warmup=QUERY,
        ),
    )  # fmt: skip
    records = records_of(IMAGES, LABELS)
    run_key = hashlib.sha256(life.run.encode()).digest()
    attempt = Attempt.start(number, run_key, None, SingleProcess())
    meter = Meter(journal, budget, reservation, number)
    denoiser = Denoiser(Network(), EDM())
    try:
        Trainer(training, denoiser, records, attempt, meter, Path(life.home, life.run)).run()
    except UmbraError as error:
        if "lost in a crash" not in str(error):  # every step was forfeited by earlier kills
            raise


class Network(torch.nn.Module):
    """One convolution."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, c_noise, label):
        return self.layer(x)


class Nursery:
    """Forks lives on command and says how they ended."""

    def serve(self) -> None:
        """Answer every line: a life by its process's id, an id by its exit code, null before."""
        for line in sys.stdin:
            asked = json.loads(line)
            answer = self._fork(Life(**asked)) if isinstance(asked, dict) else self._poll(asked)
            print(json.dumps(answer), flush=True)

    def _fork(self, life: Life) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            live(life)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _poll(self, pid: int) -> int | None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None


def request(asked: Life | int) -> str:
    """Write a line as `Nursery.serve` reads it."""
    return json.dumps(asked if isinstance(asked, int) else asdict(asked)) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.Adam(Network().parameters())  # imports half of torch: once, not in every life
    gc.freeze()  # or every life would copy what it never changes
    Nursery().serve()
