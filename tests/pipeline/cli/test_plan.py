import pytest


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


def test_it_touches_nothing(umbra, write_spec, tmp_path):
    """Neither the data, which may be elsewhere, nor a home."""
    path = write_spec(("path: train.npz", "path: /not/here.npz"))
    assert umbra("plan", path).code == 0
    assert not (tmp_path / "home").exists()
