import json

import pytest

from privacy.ledger.records import Facts


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch):
    """The trial takes a second and its result differs every time."""
    monkeypatch.setattr("pipeline.plan._views_per_second", lambda spec, denoiser: ("cpu", 100.0))


def test_it_is_what_will_be_reserved(umbra, house, write_spec):
    path = write_spec()
    result = umbra("plan", path, "--json")
    assert (result.code, result.err) == (0, "")
    said = result.json
    assert said["epsilon"]["pld"] < said["epsilon"]["rdp"] <= 8
    assert said["steps"] == 4 and said["expected_batch"] == 20 and said["views"] == 2
    from pipeline.spec import load_spec

    run = house.reserve(load_spec(path))
    plan = house.budget.reservation(run.state().reservation_id).plan
    assert said["components"] == [part.to_record() for part in plan]


def test_for_a_person(umbra, write_spec):
    result = umbra("plan", write_spec())
    assert (result.code, result.err) == (0, "")
    for part in ("noise multiplier σ", "steps T", "N = 40", "RDP", "PRV", "PLD", "0.001"):
        assert part in result.out


def test_the_unit_is_the_one_that_was_declared(umbra, house, write_spec):
    house.budget.declare("clinic", 8.5, 1e-3, Facts("patient", 10, public_holdout=True))
    path = write_spec(("  name: blots\n", "  name: clinic\n"))
    said = umbra("plan", path, "--json").json
    # One curve for a record, and one for a patient.
    assert "patient" in json.dumps(said["attack"][1])
    assert "image" not in json.dumps(said["attack"])
    assert any("a patient may have 10" in note for note in said["notes"])
    assert "patient" in umbra("plan", path).out


def test_it_touches_nothing(umbra, write_spec, tmp_path):
    """Neither the data, which may be elsewhere, nor a home."""
    path = write_spec(("path: train.npz", "path: /not/here.npz"))
    assert umbra("plan", path).code == 0
    assert not (tmp_path / "home").exists()
