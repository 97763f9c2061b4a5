import json
from dataclasses import asdict, replace

import pytest

from pipeline.cli.submit import summarise
from privacy.ledger.records import Facts


def told(house, run):
    summary = summarise(run, house.home, house.budget)
    return summary, json.dumps(asdict(summary), ensure_ascii=False)


def test_a_finished_run(finished):
    house, run = finished
    summary, text = told(house, run)
    assert summary.classifiers == (("logreg", 0.8125, None), ("mlp", 0.8125, None))
    assert dict(summary.scores) == {
        "frechet_gabor": 12.5,
        "precision": 0.75,
        "recall": 0.625,
        "density": 0.875,
        "coverage": 0.5625,
    }
    assert summary.withheld == ""
    meter = house.budget.odometer("blots")
    spent = summary.privacy["spent by this run"]
    assert spent.startswith(f"ε ≤ RDP {meter.spent}, PRV ")
    assert spent.endswith("at δ = 0.001, for one image")
    assert f"spent {meter.spent}, left {meter.left}" in summary.privacy["budget of the data"]
    assert summary.privacy["void"] == "no"
    assert summary.privacy["audit"] == "passed"
    assert "0.96875" not in text


@pytest.mark.parametrize("facts", [Facts(public=True, public_holdout=True)])
def test_the_ceiling_is_shown_where_all_images_are_public(house, blots_spec):
    public = ("  classes: [round, square]", "  classes: [round, square]\n  public: true")
    summary, _ = told(house, house.finish(house.reserve(blots_spec(public))))
    assert summary.classifiers[0] == ("logreg", 0.8125, 0.96875)


@pytest.mark.parametrize("facts", [Facts()])
def test_figures_against_a_private_holdout_are_withheld(house, blots_spec):
    run = house.finish(house.reserve(blots_spec(("    public: true", "    public: false"))))
    summary, text = told(house, run)
    assert summary.classifiers == () and summary.scores == ()
    assert "the reference is private" in summary.withheld
    for number in ("0.8125", "0.96875", "12.5", "0.5625"):
        assert number not in text


def test_no_evaluation(finished):
    house, run = finished
    (run.release / "metrics.json").unlink()
    (run.internal / "metrics.json").unlink()
    assert told(house, run)[0].withheld == "no evaluation was asked for"


def test_a_void_run_is_marked(house, blots_spec):
    run = house.finish(house.reserve(blots_spec(("  delta: 1e-3", "  delta: 1e-3\n  seed: 3"))))
    assert told(house, run)[0].privacy["void"].startswith("YES")


@pytest.mark.parametrize("what", ["shard", "ledger"])
def test_a_failed_audit_is_not_hidden(finished, tamper, what):
    house, run = finished
    if what == "shard":
        next((run.release / "data").glob("*.parquet")).write_bytes(b"")
    else:
        tamper(house, "UPDATE umbra_ledger SET created_at = 'then' WHERE kind = 'charge'")
    summary = summarise(run, house.home, house.budget)
    assert summary.privacy["audit"].startswith("FAILED")


def test_places_hold_no_password(finished):
    house, run = finished
    home = replace(house.home, mlflow_uri="https://me:secret@tracking.example/x")
    summary = summarise(run, home, house.budget)
    assert summary.places["MLflow"].endswith("https://tracking.example/x")
    assert "secret" not in json.dumps(asdict(summary))
