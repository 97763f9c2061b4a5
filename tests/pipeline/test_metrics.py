import json

import pytest

from pipeline.metrics import flat, likeness, released
from privacy.errors import IntegrityBroken

PRIVATE_HOLDOUT = ("    public: true", "    public: false")
ALL_PUBLIC = ("  classes: [round, square]", "  classes: [round, square]\n  public: true")


def made(house, spec):
    return house.finish(house.reserve(spec))


def everything(run):
    """All that leaves the wall, as one text."""
    return "".join(
        path.read_bytes().decode("latin-1") for path in run.release.rglob("*") if path.is_file()
    )


def test_against_a_private_holdout_nothing_is_released(house, blots_spec, tmp_path):
    run = made(house, blots_spec(PRIVATE_HOLDOUT))
    assert "0.8125" in (run.internal / "metrics.json").read_text()
    assert not (run.release / "metrics.json").exists()
    assert released(run, house.budget) == {}
    for number in ("0.8125", "0.96875", "12.5"):
        assert number not in everything(run)
    card = (house.export(run, tmp_path / "out") / "README.md").read_text()
    assert "accuracy" not in card and "0.81" not in card and "12.5" not in card


def test_a_ceiling_from_private_images_is_dropped(house, blots_spec):
    run = made(house, blots_spec())
    results = released(run, house.budget)
    assert results["ceiling"] == {}
    assert results["synthetic"]["mlp"]["accuracy"] == 0.8125
    assert results["features"]["frechet"]["distance"] == 12.5
    assert "0.96875" not in everything(run)
    assert "0.96875" in (run.internal / "metrics.json").read_text()


def test_where_all_is_public_all_is_released(house, blots_spec):
    run = made(house, blots_spec(ALL_PUBLIC))
    assert released(run, house.budget) == json.loads((run.internal / "metrics.json").read_text())


@pytest.mark.parametrize("change", [PRIVATE_HOLDOUT, None])
def test_what_got_into_release_by_mistake_goes_no_further(house, blots_spec, change):
    run = made(house, blots_spec(*([change] if change else [])))
    (run.release / "metrics.json").write_text((run.internal / "metrics.json").read_text())
    assert "0.96875" not in json.dumps(released(run, house.budget))
    assert ("0.8125" in json.dumps(released(run, house.budget))) == (change is None)


def test_no_evaluation(house, blots_spec):
    spec = blots_spec(("evaluate:\n  classifiers: [logreg, mlp]\n", ""))
    run = house.reserve(spec)
    assert released(run, house.budget) == {}


def test_damaged(finished):
    house, run = finished
    for text in ("", "{", "{}", "[]", "null", '{"synthetic": {}, "ceiling": {}, "features": 1}'):
        (run.release / "metrics.json").write_text(text)
        with pytest.raises(IntegrityBroken, match="is damaged"):
            released(run, house.budget)


def test_names_and_values():
    results = {
        "synthetic": {"mlp": {"accuracy": 0.5, "per_class": [1.0, None, 0.25]}},
        "ceiling": {"mlp": {"accuracy": 0.75}},
        "features": {
            "frechet": {"metric": "fid", "distance": 3.0},
            "precision_recall": {"precision": 1, "recall": 2, "density": 3, "coverage": 4},
        },
    }
    like = {"fid": 3.0, "precision": 1, "recall": 2, "density": 3, "coverage": 4}
    assert likeness(results) == like
    assert flat(results) == {
        "mlp.accuracy": 0.5,
        "mlp.class.0": 1.0,
        "mlp.class.2": 0.25,
        "mlp.ceiling": 0.75,
        **like,
    }
