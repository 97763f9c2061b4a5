"""Which step is audited: the one that a spec plans, a run reserved, or a default."""

import pytest

from pipeline.audit import start
from pipeline.audit.run import audit_step
from pipeline.plan import plan
from pipeline.progress import SilentProgress
from pipeline.spec.load import SpecError
from privacy.audit import mechanism
from privacy.dp_sgd import DPSGD
from privacy.errors import InvalidRequest

CHARGED = []  # the plan of every audit


@pytest.fixture
def asked(monkeypatch):
    """What the audit of the step is asked for, without doing it."""
    calls, planned = [], CHARGED
    planned.clear()
    monkeypatch.setattr(
        mechanism, "audit_mechanism", lambda dpsgd, **settings: calls.append((dpsgd, settings))
    )
    monkeypatch.setattr(
        start, "audit_starts", lambda found, dpsgd, views, charged: planned.append(charged)
    )
    return calls


def test_a_default(house, asked):
    audit_step(house.home, None, SilentProgress())
    audit_step(house.home, None, SilentProgress(), trials=500)
    assert asked[0] == (DPSGD(1000, 0.1, 1.0, 1.0), {"views": 4})
    assert asked[1][1] == {"views": 4, "trials": 500}
    assert [part.name for part in CHARGED[0]] == ["warmup", "accuracy", "class-counts"]


def test_a_spec(house, blots, asked):
    audit_step(house.home, str(blots / "blots.yaml"), SilentProgress(), trials=300)
    (dpsgd, settings), *_ = asked
    from pipeline.spec import load_spec

    planned = plan(load_spec(blots / "blots.yaml"), trial=False)
    assert dpsgd == DPSGD(40, 0.5, planned.numbers["noise_multiplier"], 1.0)
    path = settings.pop("path")
    assert settings == {"views": 2, "delta": 1e-3, "trials": 300}
    assert path.engine.name == "layerwise"


def test_large_images_are_trained_by_another_engine(house, blots_spec, asked):
    run = house.reserve(blots_spec(("views: 2", "views: 128")))
    audit_step(house.home, run.run_id, SilentProgress())
    assert asked[0][1]["path"].engine.name == "record"


def test_a_run(finished, asked):
    """By what was reserved, whatever the spec would calibrate to by now."""
    house, run = finished
    reserved = house.budget.reservation(run.state().reservation_id)
    for subject in (run.run_id, str(run.path)):
        audit_step(house.home, subject, SilentProgress())
        dpsgd, settings = asked.pop()
        assert dpsgd.mechanism(4) == reserved.component("dp-sgd").mechanism
        assert (settings["views"], settings["delta"]) == (2, 1e-3)


def test_no_such_thing(finished, tmp_path, asked):
    house, run = finished
    home = house.home
    with pytest.raises(InvalidRequest, match="there is no run"):
        audit_step(home, "blotz", SilentProgress())
    with pytest.raises(InvalidRequest, match="neither a spec's file nor a run"):
        audit_step(home, str(tmp_path), SilentProgress())
    with pytest.raises(SpecError):
        audit_step(home, "gone.yaml", SilentProgress())
    with pytest.raises(InvalidRequest, match="never reserved"):
        empty = home.new_run(run.spec())
        audit_step(home, empty.run_id, SilentProgress())
    assert asked == []


@pytest.mark.slow
def test_what_ships_passes(house):
    found = audit_step(house.home, None, SilentProgress(), trials=200)
    assert not found.broken
    assert found.checks and found.bounds
    names = " ".join(check.name for check in found.checks)
    for what in ("a worker's start", "charged before it is used", "warm-up", "class-counts"):
        assert what in names
    assert all(bound.lower.epsilon <= bound.claim for bound in found.bounds)
