"""A training that is killed again and again never draws what the ledger does not cover."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from privacy.budget import Budget, Component
from privacy.dp_sgd import DPSGD
from privacy.ledger import Ledger
from synth.checkpoint import newest
from synth.training import PRIVATE

KEY = bytes(range(32))

# One start of a run that is going to be killed: a real ledger, a real process.
START = """
import secrets, sys, time
from pathlib import Path
import numpy as np, torch
from privacy.budget import Budget
from privacy.dp_sgd import DPSGD
from privacy.ledger import Ledger
from privacy.poisson import PoissonSampler
from synth.attempt import Attempt
from synth.denoisers import EDM, Denoiser
from synth.records import Records
from synth.training import Trainer, Training

home, reservation, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
budget = Budget(Ledger.open(home / "ledger.db", bytes(range(32))))
number = budget.next_attempt(reservation)

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x, c_noise, label):
        return self.layer(x)

class Meter:
    def remaining(self, component):
        return steps - budget.charged_steps(reservation)[component]
    def charge(self, component, count):
        return str(budget.charge(reservation, component, count, number, secrets.token_hex(8)).head)

shipped = PoissonSampler.mask
def logged(self, step, ids):
    with (home / "draws").open("a") as log:  # written before the draw: a kill hides none
        log.write(f"{self.attempt} {step}\\n")
    time.sleep(0.004)
    return shipped(self, step, ids)
PoissonSampler.mask = logged

images = np.zeros((20, 4, 4, 1), dtype=np.uint8)
records = Records.from_uint8(images, np.zeros(20, dtype=np.int64), torch.device("cpu"))
training = Training(DPSGD(20, 0.2, 2.0, 1.0), steps, 2, 0.01, 0.9, 0.1, 1, 4, 1, 8)
Trainer(training, Denoiser(Network(), EDM()), records, Attempt(number, bytes(range(32))), Meter(),
        home / "checkpoints").run()
print("done")
"""


@pytest.mark.slow
def test_killed_at_random_instants(tmp_path):
    """SIGKILL in the middle of steps, charges and checkpoints; the ledger covers every draw."""
    steps, dice = 300, random.Random(time.time_ns())
    ledger = Ledger.open(tmp_path / "ledger.db", KEY)
    budget = Budget(ledger)
    budget.declare("toy", 100.0, 1e-3)
    reservation = budget.reserve(
        "run-1",
        "toy",
        "print",
        20,
        "one image",
        records_per_unit=1,
        plan=[Component(PRIVATE, DPSGD(20, 0.2, 2.0, 1.0).mechanism(steps))],
        void=False,
        idempotency_key="once",
    ).id
    log = tmp_path / "draws"
    log.touch()
    command = [sys.executable, "-c", START, str(tmp_path), reservation, str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for start in range(4):
        before = len(log.read_text().splitlines())
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        if start < 3:
            until = before + dice.randint(1, 40)
            while process.poll() is None and len(log.read_text().splitlines()) < until:
                time.sleep(0.002)
            time.sleep(dice.random() * 0.02)
            process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=100)
        draws = log.read_text().splitlines()
        assert len(draws) <= budget.charged_steps(reservation)[PRIVATE] <= steps
        assert len(set(draws)) == len(draws)
        assert ledger.verify() == []
    assert out == "done\n"
    assert budget.charged_steps(reservation)[PRIVATE] == steps
    found = newest(tmp_path / "checkpoints").checkpoint
    assert found.step <= len(draws)
    assert found.attempt > 1
    ledger.close()
