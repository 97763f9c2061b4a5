import json

import pytest

from pipeline import metrics, stages
from privacy.budget import Budget
from privacy.budget.facts import Shown
from privacy.errors import DataError

PUBLIC = ("public: true", "public: false")


@pytest.fixture
def measured(house, blots_spec, context, tracked, monkeypatch):
    """Run the stage on made-up results of a spec with changes."""

    def run(*changes):
        made = house.finish(house.reserve(blots_spec(*changes)))
        results = json.loads((made.internal / metrics.METRICS).read_text())
        for folder in (made.internal, made.release):
            (folder / metrics.METRICS).unlink(missing_ok=True)

        def evaluate(spec, release, traces, on_task, known):
            assert (release, traces.parent) == (made.release, made.internal)
            assert set(known) == {"train", "holdout"}
            for _ in range(2 * len(spec.evaluate.classifiers) + 1):
                on_task()
            return results

        monkeypatch.setattr(stages.evaluation, "evaluate", evaluate)
        given = context(made)
        stages.Evaluate().run(given, tracked)
        return made, given, results

    return run


def _of(folder):
    return json.loads((folder / metrics.METRICS).read_text())


def test_against_a_public_reference_the_figures_are_released_without_the_private_ceiling(
    measured, tracked
):
    run, given, results = measured()
    assert _of(run.internal) == results
    assert _of(run.release) == {**results, "ceiling": {}}
    assert tracked.values["eval.logreg.accuracy"] == 0.8125
    assert not any("ceiling" in name for name in tracked.values)
    assert given.progress.done == {"evaluate": 5}


@pytest.mark.parametrize("later", [False, True])
def test_a_reference_that_cannot_be_verified_is_refused(
    house, blots_spec, context, tracked, monkeypatch, later
):
    """Also one that the ledger comes to allow only while it is measured."""
    run = house.finish(house.reserve(blots_spec()))
    results = _of(run.internal)
    (run.release / metrics.METRICS).unlink()
    (run.internal / "holdout-content").unlink()
    measured = []
    monkeypatch.setattr(stages.evaluation, "evaluate", lambda *_: measured.append(None) or results)
    if later:
        allowed = Budget.shown
        monkeypatch.setattr(
            Budget, "shown", lambda self, name: allowed(self, name) if measured else Shown()
        )
    with pytest.raises(DataError, match="lacks holdout-content"):
        stages.Evaluate().run(context(run), tracked)
    assert len(measured) == later
    assert not (run.release / metrics.METRICS).exists() and tracked.values == {}


def test_where_the_training_images_are_public_the_ceiling_is_released(measured, tracked):
    run, _, results = measured(("size: 8", "public: true\n  size: 8"))
    assert _of(run.release) == results
    assert tracked.values["eval.logreg.ceiling"] == 0.96875


def test_against_a_private_reference_nothing_leaves_internal(measured, tracked):
    run, _, results = measured(PUBLIC)
    assert _of(run.internal) == results
    assert not (run.release / metrics.METRICS).exists()
    assert tracked.values == {}


def test_a_spec_without_the_section_is_passed_over(house, blots_spec, context, tracked):
    text = "evaluate:\n  classifiers: [logreg, mlp]\n"
    run = house.reserve(blots_spec((text, "")))
    stages.Evaluate().run(context(run), tracked)
    assert not (run.internal / metrics.METRICS).exists()
