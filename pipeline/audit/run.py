"""`umbra audit run` and `umbra audit mechanism`: the training and the step that ship, attacked.

A run is audited by training its recipe once more, with canaries: the one-run audit of Steinke, Nasr
and Jagielski 2023. Each of m canaries is in or out by a fair coin; of the r that the trained
weights seem surest about, count how many are guessed right. A training that is (ε, δ)-private
bounds how many that can be, so the count gives a lower bound on its ε.

It costs no privacy: the run's released images stand in for the private ones, and what is computed
from those and fresh randomness is post-processing. So it audits the training that is shipped, at
the run's settings, on this machine; that the run was made by it only the ledger shows.
"""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pipeline.audit import start
from pipeline.audit.ledger import find_run
from pipeline.home import Home
from pipeline.models import build_denoiser
from pipeline.plan import (
    ACCURACY,
    CLASS_COUNTS,
    build_method,
    holdout_components,
    training_components,
)
from pipeline.progress import Progress
from pipeline.runs.directory import RunDirectory
from pipeline.spec import Spec, load_spec
from privacy.accounting import epsilon_bounds
from privacy.audit import mechanism, one_run
from privacy.budget import Budget, Component, Reservation
from privacy.collective import SingleProcess
from privacy.dp_sgd import DPSGD
from privacy.errors import BudgetRefused, IntegrityBroken, InvalidRequest, UmbraError
from privacy.keystream import os_key
from privacy.ledger import Ledger
from privacy.mechanisms import DiscreteLaplace, Gaussian, Mechanism
from privacy.records import LabelledRecords, OwnedRecords
from synth.data.shards import from_uint8, read_shards
from synth.methods.base import Attempt, Method
from synth.methods.diffusion import WARMUP, Diffusion
from synth.preconditioning import Denoiser, DenoisingLoss, draw_views
from synth.records import Records

# Public: what is secret is which canaries are in.
_SEED = 20230515
_DRAWS = 64


def make_canaries(count: int, channels: int, size: int, classes: int) -> LabelledRecords:
    """Return images of independent black and white pixels with random labels, always the same."""
    # Nothing can be said of such an image but by having seen it, and its gradient is as large as
    # any's: what is learnt of it is memorised.
    generator = torch.Generator().manual_seed(_SEED)
    pixels = torch.randint(2, (count, channels, size, size), generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    values = pixels.permute(0, 2, 3, 1).mul(255).to(torch.uint8)
    return LabelledRecords(values.contiguous().numpy(), labels.numpy())


def planted(
    released: LabelledRecords, canaries: LabelledRecords, included: np.ndarray, count: int
) -> OwnedRecords:
    """Return N = `count` records: released ones, repeated or cut to fit, and then m canaries.

    Canaries have the shape of the released; `included`, bool [m], says which are in.
    """
    fill = np.arange(count - len(canaries))
    rows = fill % len(released)
    # One that is out counts in N as one that is zeroed. That is the neighbouring relation of the
    # ledger: N and all other records are the same whether a canary is in or out, and their coins.
    places = np.concatenate([fill, len(fill) + np.flatnonzero(included)])
    return OwnedRecords(
        np.concatenate([released.values[rows], canaries.values[included]]),
        np.concatenate([released.labels[rows], canaries.labels[included]]),
        places.astype(np.uint64),
        total=count,
    )


@torch.no_grad()
def losses(
    denoiser: Denoiser, canaries: LabelledRecords, on_progress: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return the denoising loss of every canary, float64 [m], over the same draws at every call.

    `on_progress` is called after every canary.
    """
    loss = DenoisingLoss(denoiser.preconditioning)
    generator = torch.Generator().manual_seed(_SEED)
    found: list[torch.Tensor] = []
    device = next((weight.device for weight in denoiser.parameters()), torch.device("cpu"))
    labels = torch.from_numpy(canaries.labels).to(device)
    for image, label in zip(from_uint8(canaries.values).to(device), labels, strict=True):
        sigma, noise = draw_views(denoiser.preconditioning, image[None], _DRAWS, generator)
        found.append(loss(denoiser, image, label, sigma[0], noise[0]))
        on_progress()
    return torch.stack(found).double().cpu().numpy()


def guess(scores: np.ndarray, count: int) -> np.ndarray:
    """Return 1 ("in") for the highest scores, -1 ("out") for the lowest, 0 for the others, int [m].

    Of the m scores r = `count` are guessed, half on either side.
    """
    order = np.argsort(scores, kind="stable")
    guesses = np.zeros(len(scores), dtype=np.int64)
    guesses[order[: count // 2]] = -1
    guesses[order[len(order) - (count - count // 2) :]] = 1
    return guesses


@dataclass(frozen=True)
class TrainingRecipe:
    """How a run was trained, what was admitted for it, and δ of its data set's budget."""

    spec: Spec
    reservation: Reservation
    method: Method
    delta: float

    @classmethod
    def of(cls, home: Home, run: RunDirectory) -> "TrainingRecipe":
        """Read a run's spec and reservation.

        Raises InvalidRequest where the run never reserved a budget, and IntegrityBroken where the
        spec, the state or the ledger is damaged or lacks the reservation.
        """
        spec, reservation_id = run.spec(), run.state().reservation_id
        if reservation_id is None:
            raise InvalidRequest(f"run {run.run_id} never reserved a budget: it has no recipe")
        budget = Budget(Ledger.open(home.ledger_url, witness=home.witness_path))
        try:
            reservation = budget.reservation(reservation_id)
        except InvalidRequest as error:
            raise IntegrityBroken(
                f"{error} Run {run.run_id} was made under it: its rows were cut off, or this is "
                "not the ledger it was made under."
            ) from error
        delta = budget.odometer(reservation.dataset).delta
        return cls(spec, reservation, build_method(spec), delta)


BETA = 0.05
_CANARIES = 1000
_FEWEST_GUESSES = 20


@dataclass(frozen=True)
class RunAudit:
    """What the canaries showed."""

    run_id: str  # whose recipe was trained
    canaries: int  # m
    guesses: int  # r
    right: int  # v, guesses that were right
    delta: float  # of the data set's budget
    confidence: float  # of the lower bound: 1 − β
    # The training's ε at δ is at least this, at that confidence.
    epsilon_lower: float
    # The lower bound at v = r: a claim above it cannot be refuted by this audit.
    detectable: float
    # Upper bounds on ε of the steps that were trained, by accountant, rounded up.
    claimed: Mapping[str, float]
    # Whether the run was seeded. The audit's own noise never is.
    void: bool

    @property
    def claim(self) -> float:
        """The smallest of the upper bounds."""
        return min(self.claimed.values())

    @property
    def ok(self) -> bool:
        """Whether the lower bound does not refute the claim."""
        return self.epsilon_lower <= self.claim

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain JSON values."""
        return {"ok": self.ok, **asdict(self)}


def audit_training(
    home: Home,
    run: RunDirectory,
    progress: Progress,
    canaries: int | None = None,
    guesses: int | None = None,
) -> RunAudit:
    """Train the run's recipe on its released images with canaries, and guess which were included.

    It takes as long as the run's own training took on one worker. `canaries` is m, by default 1000
    or half of N; `guesses` is r, by default a fifth of m and at least 20.

    Raises InvalidRequest where the run has no images, or m or r does not fit N, IntegrityBroken
    where files or ledger are damaged, and UmbraError where the training diverged.
    """
    state = run.state()
    if not state.is_done("synthesize"):
        raise InvalidRequest(
            f"run {run.run_id} is {state.status} and has no finished images to train on. Wait for "
            f"it, or go on with `umbra resume {run.run_id}`."
        )
    recipe = TrainingRecipe.of(home, run)
    m, r = _sizes(recipe.reservation.records, canaries, guesses)
    # The noise is fresh from the operating system whatever seed the spec has.
    included, meter = _coins(m), _Meter(recipe.reservation)
    scores = _scores(recipe, run, included, meter, progress)
    if not np.isfinite(scores).all():
        raise UmbraError(
            "the training with canaries diverged, so nothing can be told of them. The recipe's "
            "learning rate is too high for its noise."
        )
    right = int(np.sum(guess(scores, r) == np.where(included, 1, -1)))
    bounds = epsilon_bounds(meter.spent(), recipe.delta).stated()
    return RunAudit(
        run_id=run.run_id,
        canaries=m,
        guesses=r,
        right=right,
        delta=recipe.delta,
        confidence=1 - BETA,
        epsilon_lower=one_run.epsilon_lower_bound(m, r, right, recipe.delta, BETA),
        detectable=one_run.detectable(m, r, recipe.delta, BETA),
        claimed={name: bounds[name] for name in ("rdp", "pld") if name in bounds},
        void=recipe.reservation.void,
    )


def _sizes(records: int, canaries: int | None, guesses: int | None) -> tuple[int, int]:
    """Return m and r, given or by default, or refuse those that do not fit N."""
    m = min(_CANARIES, math.ceil(records / 2)) if canaries is None else canaries
    if not 1 <= m <= records:
        raise InvalidRequest(
            f"canaries take the places of records: expected 1 to N = {records}, found {m}"
        )
    r = max(min(_FEWEST_GUESSES, m), m // 5) if guesses is None else guesses
    if not 1 <= r <= m:
        raise InvalidRequest(f"guesses: expected 1 to the number of canaries, {m}, found {r}")
    return m, r


def _coins(count: int) -> np.ndarray:
    """Toss fair coins by the operating system's generator, bool [count]."""
    return np.frombuffer(secrets.token_bytes(count), dtype=np.uint8) % 2 == 1


class _Meter:
    """Counts steps in memory: no private record is used, so the ledger must say that none was."""

    def __init__(self, reservation: Reservation) -> None:
        self._plan = {part.name: part.mechanism for part in reservation.plan}
        self._counted: Counter[str] = Counter()

    def charge(self, component: str, steps: int) -> str:
        if steps > self.remaining(component):
            raise BudgetRefused(f"the recipe has no {steps} steps of {component!r} left")
        self._counted[component] += steps
        return ""  # there is no ledger whose head it could be

    def remaining(self, component: str) -> int:
        return self._plan[component].steps - self._counted[component]

    def spent(self) -> list[Mechanism]:
        """Return the mechanisms with the steps that were taken."""
        taken = [(part, self._counted[name]) for name, part in self._plan.items()]
        return [part.with_steps(steps) for part, steps in taken if steps]


def _scores(
    recipe: TrainingRecipe,
    run: RunDirectory,
    included: np.ndarray,
    meter: _Meter,
    progress: Progress,
) -> np.ndarray:
    """Return by how much the training lowered the loss of every canary, float64 [m]."""
    data, m = recipe.spec.data, len(included)
    wanted = recipe.spec.resources.gpus_per_worker > 0
    device = torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")
    released = LabelledRecords.concatenate(read_shards(run.release))
    canaries = make_canaries(m, data.channels, data.size, len(data.classes))
    records = planted(released, canaries, included, recipe.reservation.records)
    denoiser = build_denoiser(recipe.spec).to(device)
    with progress.stage("score canaries", m) as stage:
        before = losses(denoiser, canaries, stage.advance)
    total = recipe.method.extent(recipe.reservation.plan).steps
    with progress.stage("train with canaries", total) as stage, TemporaryDirectory() as folder:
        weights = recipe.method.fit(
            Records.of(records, device),
            recipe.reservation.plan,
            Attempt.start(1, os_key(), None, SingleProcess()),
            meter,
            Path(folder),
            on_progress=lambda phase, done, total: stage.advance(),
        )
    denoiser.load_state_dict(weights)
    with progress.stage("score canaries again", m) as stage:
        return before - losses(denoiser, canaries, stage.advance)


_DEFAULT = DPSGD(records=1000, sampling_probability=0.1, noise_multiplier=1.0, clip_norm=1.0)
_DEFAULT_VIEWS = 4
_DEFAULT_RELEASES: tuple[Component, ...] = (
    Component(WARMUP, Gaussian(10.0)),
    Component(ACCURACY, DiscreteLaplace(10.0, steps=2)),
    Component(CLASS_COUNTS, DiscreteLaplace(10.0)),
)
_SPECS = (".yaml", ".yml")


def audit_step(
    home: Home, subject: str | None, progress: Progress, trials: int | None = None
) -> mechanism.MechanismAudit:
    """Audit the step, workers that start, and all that is charged beside it, on toy data.

    Opens no data set and charges nothing.

    The plan of `subject`, a spec or a run, gives q, σ, C and K; None stands for a default. The step
    is run `trials` times with the canary, and as often without it.

    Raises InvalidRequest where there is no such spec or run, or too few trials, SpecError where the
    spec is not valid, and IntegrityBroken where the run or the ledger is damaged.
    """
    settings: dict[str, Any] = {} if trials is None else {"trials": trials}
    if subject is None:
        dpsgd, settings["views"], charged = _DEFAULT, _DEFAULT_VIEWS, _DEFAULT_RELEASES
    elif Path(subject).is_file() or Path(subject).suffix in _SPECS:
        spec = load_spec(Path(subject))
        charged = training_components(spec)
        dpsgd, shown = _step(build_method(spec), charged)
        settings |= shown | {"delta": spec.privacy.delta}
        charged += holdout_components(spec)
    elif run := find_run(home, subject):
        recipe = TrainingRecipe.of(home, run)
        dpsgd, shown = _step(recipe.method, recipe.reservation.plan)
        settings |= shown | {"delta": recipe.delta}
        charged = recipe.reservation.plan + holdout_components(recipe.spec)
    else:
        raise InvalidRequest(f"{subject} is neither a spec's file nor a run")
    with progress.stage("run the step on toy data"):
        found = mechanism.audit_mechanism(dpsgd, **settings)
    with progress.stage("start workers on toy data"):
        return start.audit_starts(found, dpsgd, settings["views"], charged)


def _step(method: Method, components: Sequence[Component]) -> tuple[DPSGD, dict[str, Any]]:
    """Return the step that is charged, its views, and its path with training's gradient engine."""
    if not isinstance(method, Diffusion):
        raise InvalidRequest(
            f"the mechanism audit runs a step of DP-SGD, but the method is {method.name}; "
            "audit a run or a spec of method diffusion"
        )
    settings = {"views": method.train.views, "path": mechanism.StepPath(engine=method.engine())}
    return method.dpsgd(components), settings
