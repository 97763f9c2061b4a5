"""Bugs of starting again: what a first start left behind is used twice, or not paid for.

The training that ships runs on a real ledger, crashes, and is started again, while every mask and
every noise tensor is noted as it is drawn.
"""

import secrets
from unittest import mock

import numpy as np
import torch

import privacy.budget.admission
from privacy.audit import audit_ledger
from privacy.budget import Budget, Component
from privacy.budget.identity import content_of
from privacy.collective import SingleProcess
from privacy.dp_sgd import DPSGD
from privacy.errors import InvalidRequest
from privacy.ledger import Ledger
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from privacy.records import LabelledRecords
from synth.methods.base import Attempt
from synth.preconditioning import EDM, Denoiser
from synth.settings import TrainSettings
from synth.training import PRIVATE, Trainer, Training
from tests.builders import records_of
from tests.privacy.planted.bug import Bug

KEY = bytes(range(32))
N, STEPS, BLOCK, CRASH_AFTER = 64, 12, 4, 2
ACCOUNTED = DPSGD(N, 0.2, 2.0, 1.0)
SETTINGS = TrainSettings(
    batch=8,
    steps=STEPS,
    views=2,
    learning_rate=0.01,
    ema=0.9,
    charge_block=BLOCK,
    checkpoint_every=1,
)

NOT_CHARGED = "steps were taken that are not charged"
MASK_TWICE = "a mask was used twice"
NOISE_TWICE = "noise was used twice"
AUDIT = "the audit of the ledger"


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)

    def forward(self, x, c_noise, label):
        return self.layer(x)


class Meter:
    def __init__(self, budget, reservation, attempt):
        self.budget, self.reservation, self.attempt = budget, reservation, attempt

    def remaining(self, component):
        return STEPS - self.budget.charged_steps(self.reservation)[component]

    def charge(self, component, steps):
        key = secrets.token_hex(8)
        return str(self.budget.charge(self.reservation, component, steps, self.attempt, key).head)


class Crash(Exception):
    pass


def crash(phase, done, total):
    if done == CRASH_AFTER:
        raise Crash


def reserved(ledger):
    """Return a budget and a reservation of STEPS steps on a toy data set."""
    budget = Budget(ledger)
    budget.declare("toy", 50.0, 1e-3)
    images, labels = np.zeros((N, 4, 4, 1), np.uint8), np.zeros(N, np.int64)
    images[:, 0, 0, 0] = np.arange(N)
    reservation = budget.reserve(
        "run-1",
        "toy",
        content_of(LabelledRecords(images, labels), KEY),
        "one image",
        records_per_unit=1,
        plan=[Component(PRIVATE, ACCOUNTED.mechanism(STEPS))],
        void=False,
        idempotency_key="once",
    )
    return budget, reservation.id, records_of(images, labels)


def findings(folder, trainer=Trainer, attempt=Attempt):
    """Train, crash before the first checkpoint, train to the end, and compare with the ledger."""
    ledger, masks, noise = Ledger.open(folder / "ledger.db", KEY), [], []
    mask, gaussian = PoissonSampler.mask, SecureGaussian.gaussian

    def noted_mask(self, step, record_ids):
        masks.append(mask(self, step, record_ids))
        return masks[-1]

    def noted_gaussian(self, shape, std):
        noise.append(gaussian(self, shape, std))
        return noise[-1]

    try:
        budget, reservation, records = reserved(ledger)
        with (
            mock.patch.object(PoissonSampler, "mask", noted_mask),
            mock.patch.object(SecureGaussian, "gaussian", noted_gaussian),
        ):
            for on_progress in (crash, lambda *told: None):
                number = budget.begin_attempt(reservation, secrets.token_hex(8))
                start = trainer(
                    Training(ACCOUNTED, STEPS, 1, 0.1, 8, SETTINGS),
                    Denoiser(Network(), EDM()),
                    records,
                    attempt.start(number, KEY, None, SingleProcess()),
                    Meter(budget, reservation, number),
                    folder / "checkpoints",
                    on_progress=on_progress,
                )
                try:
                    start.run()
                except Crash:
                    assert len(masks) == CRASH_AFTER
        audit = audit_ledger(ledger)
    finally:
        ledger.close()
    found = set() if audit.ok else {AUDIT}
    if len(masks) > audit.reservations[0].charged[PRIVATE]:
        found.add(NOT_CHARGED)
    if len(np.unique(np.stack(masks), axis=0)) < len(masks):
        found.add(MASK_TWICE)
    if len(torch.stack(noise).flatten(1).unique(dim=0)) < len(noise):
        found.add(NOISE_TWICE)
    return found


class RetriesForFree(Trainer):
    """A second start believes that what is not in a checkpoint was never taken."""

    def _charge_block(self):
        if self.attempt.number == 1:
            return super()._charge_block()
        return self.training.steps - self._step


class RestoredNoise(Attempt):
    """The state of the noise lies in the checkpoint and is taken up again."""

    def noise(self):
        return SecureGaussian.seeded(int.from_bytes(KEY[:8], "big"))


class SameStart(Attempt):
    """A retry has the run's key and the number of the first start."""

    @classmethod
    def start(cls, number, run_key, seed, collective):
        return cls(1, run_key, seed)


def overtaken_findings(folder):
    """A start that was thought dead goes on charging beside the one that replaced it."""
    ledger = Ledger.open(folder / "ledger.db", KEY)
    try:
        budget, reservation, _ = reserved(ledger)
        old, new = (budget.begin_attempt(reservation, key) for key in ("first", "second"))
        Meter(budget, reservation, new).charge(PRIVATE, 1)
        found = set()
        try:
            Meter(budget, reservation, old).charge(PRIVATE, 1)
            found.add(NOT_CHARGED)
        except InvalidRequest:
            pass
        return found if audit_ledger(ledger).ok else found | {AUDIT}
    finally:
        ledger.close()


def overtaken_planted(folder):
    with mock.patch.object(privacy.budget.admission, "require_chargeable", lambda *request: None):
        return overtaken_findings(folder)


BUGS = [
    Bug(
        "attempts not charged",
        lambda folder: findings(folder, trainer=RetriesForFree),
        findings,
        (NOT_CHARGED,),
    ),
    Bug(
        "attempts not charged: an overtaken start goes on",
        overtaken_planted,
        overtaken_findings,
        (AUDIT,),
    ),
    Bug(
        "noise state reused after restart",
        lambda folder: findings(folder, attempt=RestoredNoise),
        findings,
        (NOISE_TWICE,),
    ),
    Bug(
        "equal seeds: masks after a restart",
        lambda folder: findings(folder, attempt=SameStart),
        findings,
        (MASK_TWICE,),
    ),
]
