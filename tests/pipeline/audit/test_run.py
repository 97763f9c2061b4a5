"""The one-run audit: the run's own recipe, no private image, and a bound that can refute."""

import json

import numpy as np
import pytest
import torch

from pipeline.audit import run as one_run_audit
from pipeline.audit.run import RunAudit, audit_training
from pipeline.models import build_denoiser
from pipeline.plan import build_method
from pipeline.progress import SilentProgress
from pipeline.sources import NpzSource
from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from synth.preconditioning import DenoisingLoss
from synth.training import Trainer

# Learns by heart in this many steps, unless noise keeps it from it.
GREEDY = [
    ("steps: 4", "steps: 200\n  learning_rate: 0.01\n  ema: 0.9"),
    ("base: 4", "base: 8"),
]
COINS = np.array([False, True] * 10)


@pytest.fixture
def made(house, blots_spec):
    """A run that is done and claims a small epsilon."""

    def make(epsilon, *changes):
        house.budget.declare("small", 1.1 * epsilon, 1e-6)
        small = [
            ("data:\n  name: blots", "data:\n  name: small"),
            ("epsilon: 8", f"epsilon: {epsilon}"),
            ("delta: 1e-3", "delta: 1e-6"),
        ]
        return house.finish(house.reserve(blots_spec(*small, *changes)))

    return make


@pytest.fixture
def short(finished):
    """A run of four steps, to be audited at once."""
    house, run = finished
    return house, run


@pytest.fixture
def even_coins(monkeypatch):
    """Ten canaries in, ten out: with other coins the number of right guesses has another law."""
    monkeypatch.setattr(one_run_audit, "_coins", lambda count: COINS[:count])


@pytest.fixture
def told_apart(monkeypatch):
    """Let the audit see perfectly which canaries were in."""

    def losses(denoiser, canaries, on_progress):
        if not seen:
            seen.append("before")
            return np.zeros(len(canaries))
        return -COINS[: len(canaries)].astype(float)

    seen = []
    monkeypatch.setattr(one_run_audit, "losses", losses)


def audit(house, run, **options) -> RunAudit:
    return audit_training(house.home, run, SilentProgress(), **options)


@pytest.mark.slow
def test_what_ships_keeps_its_claim(made, house, even_coins):
    found = audit(house, made(1.0, *GREEDY))
    assert found.ok
    assert (found.canaries, found.guesses) == (20, 20)
    assert found.claim < found.detectable  # it could have been refuted
    assert 0.9 < found.claimed["pld"] <= found.claimed["rdp"] <= 1.0001


@pytest.mark.slow
def test_a_training_without_noise_is_refuted(made, house, even_coins, monkeypatch):
    run = made(0.3, *GREEDY)
    monkeypatch.setattr("privacy.dp_sgd.add_noise", lambda sums, drawn: sums)
    found = audit(house, run, canaries=16, guesses=14)
    assert not found.ok
    assert 0.3 < found.epsilon_lower <= found.detectable


def test_a_bound_above_the_claim_refutes_it(made, house, told_apart, even_coins):
    found = audit(house, made(0.3))
    assert found.claim < 0.3001 < found.epsilon_lower == found.detectable
    assert not found.ok and found.to_dict()["ok"] is False


def test_canaries_that_are_told_apart_give_all_that_can_be_shown(short, told_apart, even_coins):
    house, run = short
    found = audit(house, run, canaries=16, guesses=10)
    assert found.right == found.guesses == 10
    assert found.epsilon_lower == found.detectable > 0
    assert (found.delta, found.confidence) == (1e-3, 0.95)
    assert found.ok  # ε = 8 is far above what ten guesses can show
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["canaries"] == 16


def test_no_private_image_is_opened_and_nothing_is_charged(short, monkeypatch):
    house, run = short

    def refuse(*arguments):
        raise AssertionError("private images were opened")

    monkeypatch.setattr(NpzSource, "load", refuse)
    before, files = house.kinds(), sorted(run.path.rglob("*"))
    audit(house, run)
    assert house.kinds() == before
    assert sorted(run.path.rglob("*")) == files


def test_it_trains_the_runs_own_recipe_with_fresh_noise(house, blots_spec, monkeypatch):
    """Also where the run was seeded: an audit with known noise would audit something else."""
    warmup = "warmup: {noise_multiplier: 8, clip_norm: 3, steps: 2, batch: 4, learning_rate: 0.1}"
    changes = [
        ("delta: 1e-3", "delta: 1e-3\n  seed: 7"),
        ("steps: 4", f"steps: 4\n  charge_block: 3\n  micro_batch: 5\n  {warmup}"),
    ]
    run = house.finish(house.reserve(blots_spec(*changes)))
    given = []

    class Watched(Trainer):
        def __init__(self, training, denoiser, records, attempt, meter, *others, **named):
            given.append((training, records, attempt, meter))
            super().__init__(training, denoiser, records, attempt, meter, *others, **named)

    monkeypatch.setattr("synth.training.Trainer", Watched)
    monkeypatch.setattr(one_run_audit, "_coins", lambda count: np.ones(count, dtype=bool))
    found = audit(house, run, canaries=8)
    (training, records, attempt, meter), *_ = given
    reservation = house.budget.reservation(run.state().reservation_id)
    assert training == build_method(run.spec()).training(
        reservation.plan, build_denoiser(run.spec())
    )
    assert training.settings.warmup is not None
    assert (len(records), attempt.seed) == (40, None)
    assert found.void
    # Every step that was reserved was taken and counted, and the claim is about those.
    assert meter.spent() == [part.mechanism for part in reservation.plan]
    # All are in by these coins: no place is empty, and the last eight are canaries.
    assert len(records) == records.total
    assert set(records.values[-8:].unique().tolist()) == {0, 255}
    audit(house, run, canaries=8)
    assert given[1][2].key != attempt.key


def test_the_scores_are_by_how_much_the_loss_fell(short, monkeypatch):
    """The weights that are scored at the end are the moving average's."""
    house, run = short
    scored = []
    loss = DenoisingLoss.__call__

    def watched(self, denoiser, *record):
        scored.append({n: p.clone() for n, p in denoiser.named_parameters()})
        return loss(self, denoiser, *record)

    weights = []
    train = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: weights.append(train(self)) or weights[0])
    monkeypatch.setattr("pipeline.audit.run.DenoisingLoss.__call__", watched)
    # Inside the training the loss is called with views of its own: only the canaries' are watched.
    monkeypatch.setattr("synth.training.DenoisingLoss", lambda *how: _unwatched(how, loss))
    audit(house, run, canaries=4)
    assert len(scored) == 8
    assert all(torch.equal(scored[-1][name], weights[0][name]) for name in scored[-1])
    assert any(not torch.equal(scored[0][name], weights[0][name]) for name in scored[0])


def _unwatched(how, loss):
    made = DenoisingLoss(*how)
    return lambda *arguments: loss(made, *arguments)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"canaries": 41}, "expected 1 to N = 40, found 41"),
        ({"canaries": 0}, "expected 1 to N = 40, found 0"),
        ({"canaries": 10, "guesses": 11}, "the number of canaries, 10, found 11"),
        ({"guesses": 0}, "found 0"),
    ],
)
def test_sizes_that_do_not_fit(short, options, told):
    with pytest.raises(InvalidRequest, match=told):
        audit(*short, **options)


def test_a_run_without_images(house, blots_spec):
    with pytest.raises(InvalidRequest, match="no finished images"):
        audit(house, house.reserve(blots_spec()))


def test_a_damaged_shard(short):
    house, run = short
    shard = next((run.release / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityBroken, match=shard.name):
        audit(house, run)


def test_a_ledger_that_lost_the_reservation(short, tamper):
    house, run = short
    tamper(house, "DELETE FROM umbra_ledger WHERE seq > 2")
    with pytest.raises(IntegrityBroken, match="not the ledger it was made under"):
        audit(house, run)


def test_the_coins_are_fair_and_never_the_same():
    coins = one_run_audit._coins(100_000)
    assert coins.dtype == bool
    assert abs(coins.mean() - 0.5) < 0.01
    assert not np.array_equal(coins, one_run_audit._coins(100_000))


def test_a_training_that_diverged_says_nothing(short, monkeypatch):
    house, run = short
    monkeypatch.setattr(
        one_run_audit, "losses", lambda denoiser, canaries, on: np.full(len(canaries), np.nan)
    )
    with pytest.raises(UmbraError, match="diverged") as error:
        audit(house, run)
    assert error.value.exit_code == 1
