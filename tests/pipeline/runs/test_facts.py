"""What a run may show of its images is the ledger's word, by whichever path it would leave."""

import json
import shutil

import numpy as np
import pytest

from pipeline import metrics
from pipeline.audit.release import audit_release
from pipeline.progress import SilentProgress
from pipeline.report.page import write_report
from pipeline.runs.engine import submit
from privacy.errors import BudgetRefused, DataError
from privacy.ledger.records import Facts

HOLDOUT = "    source: {kind: npz, path: holdout.npz}\n    public: true"
ALL_PUBLIC = Facts(public=True, public_holdout=True)
CLAIMED = ("size: 8", "public: true\n  size: 8")  # data.public


@pytest.fixture
def declare(house):
    """Declare what the data set is, by default private with a public holdout."""

    def make(facts=None, name="blots"):
        house.budget.declare(name, 8.5, 1e-3, facts or Facts(public_holdout=True))

    return make


@pytest.fixture
def mixed(blots, tmp_path):
    """A holdout that holds some of the training images, and the change that names it."""

    def make(shared):
        with np.load(blots / "train.npz") as train, np.load(blots / "holdout.npz") as holdout:
            images = np.concatenate([train["images"][:shared], holdout["images"][shared:]])
            np.savez(tmp_path / "mixed.npz", images=images, labels=np.arange(20) % 2)
        return ("path: holdout.npz", f"path: {tmp_path}/mixed.npz")

    return make


def page(house, run):
    """The report, written again."""
    write_report(run, house.budget)
    return (run.release / "report.html").read_text()


def rows(house):
    return len(house.kinds())


class TestSubmit:
    @pytest.mark.parametrize("shared", [1, 20])
    def test_a_public_holdout_of_private_images(self, house, blots_spec, declare, mixed, shared):
        declare()
        before = rows(house)
        with pytest.raises(BudgetRefused, match="drop_doubles"):
            submit(blots_spec(mixed(shared)), house.home)
        assert rows(house) == before and not list(house.home.runs())

    def test_the_same_file_named_again_by_a_later_run(self, house, blots_spec, declare):
        """The attack of the review: data.public and the training file as a public holdout."""
        declare(Facts())
        submit(blots_spec(("    public: true", "    public: false")), house.home)
        before = rows(house)
        itself = ("path: holdout.npz", "path: train.npz")
        for changes in ([CLAIMED, itself], [itself]):
            with pytest.raises(BudgetRefused, match="declared with false, which no spec"):
                submit(blots_spec(*changes), house.home)
        assert rows(house) == before

    def test_under_another_name_that_was_declared_public(
        self, house, blots_spec, declare, tmp_path
    ):
        declare()
        submit(blots_spec(), house.home)
        declare(ALL_PUBLIC, "open")
        other = np.random.default_rng(5).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
        np.savez(tmp_path / "open.npz", images=other, labels=np.arange(40) % 2)
        renamed = ("  name: blots\n", "  name: open\n")
        source = ("path: train.npz", f"path: {tmp_path}/open.npz")
        itself = ("path: holdout.npz", "path: train.npz")
        before = rows(house)
        with pytest.raises(BudgetRefused, match="were declared public, but some of"):
            submit(blots_spec(renamed, source, itself), house.home)
        with pytest.raises(BudgetRefused, match="under another name"):
            submit(blots_spec(renamed), house.home)
        assert rows(house) == before

    @pytest.mark.parametrize(
        ("said", "found"),
        [
            ("unit: image", "'patient'"),
            ("records_per_unit: 1", "10"),
            ("records_per_unit: 9", "10"),
        ],
    )
    def test_another_unit(self, house, blots_spec, declare, said, found):
        declare(Facts("patient", 10, public_holdout=True))
        spec = blots_spec(("  delta: 1e-3", f"  delta: 1e-3\n  {said}"))
        with pytest.raises(BudgetRefused, match=f"declared with {found}, which no spec can change"):
            submit(spec, house.home)

    def test_a_spec_may_be_silent_or_repeat(self, house, blots_spec, declare):
        declare(Facts("patient", 10, public_holdout=True))
        repeated = ("  delta: 1e-3", "  delta: 1e-3\n  unit: patient\n  records_per_unit: 10")
        for spec in (blots_spec(), blots_spec(repeated)):
            reserved = submit(spec, house.home).state().reservation_id
            assert house.budget.reservation(reserved).records_per_unit == 10
            house.budget.settle(reserved)

    def test_what_nobody_declared_is_asked_for(self, house, blots_spec):
        with pytest.raises(BudgetRefused, match=r"umbra budget declare blots --epsilon 8.5"):
            submit(blots_spec(), house.home)

    def test_a_holdout_that_is_not_there_is_told_before_anything_is_reserved(
        self, house, blots_spec, declare
    ):
        declare()
        before = rows(house)
        with pytest.raises(DataError, match=r"gone.npz"):
            submit(blots_spec(("path: holdout.npz", "path: gone.npz")), house.home)
        assert rows(house) == before


class TestRelease:
    """A run whose holdout was public, until a private data set was found to hold one of it."""

    @pytest.fixture
    def made(self, finished, blots, tmp_path):
        house, run = finished
        assert metrics.released(run, house.budget)["synthetic"]
        return house, run

    @pytest.fixture
    def found_private(self, made, blots, blots_spec, tmp_path):
        house, run = made
        house.budget.declare("clinic", 8.5, 1e-3, Facts())
        house.budget.accept_overlap("clinic", "blots")
        with np.load(blots / "holdout.npz") as holdout:
            others = np.random.default_rng(6).integers(0, 256, (39, 8, 8, 1), dtype=np.uint8)
            images = np.concatenate([holdout["images"][3:4], others])
        np.savez(tmp_path / "clinic.npz", images=images, labels=np.arange(40) % 2)
        spec = blots_spec(
            ("  name: blots\n", "  name: clinic\n"),
            ("path: train.npz", f"path: {tmp_path}/clinic.npz"),
            ("  holdout:\n" + HOLDOUT + "\n", ""),
            ("evaluate:\n  classifiers: [logreg, mlp]\n", ""),
        )
        submit(spec, house.home)
        return house, run

    def test_metrics(self, found_private):
        house, run = found_private
        assert metrics.released(run, house.budget) == {}

    def test_a_report_that_is_written_again(self, found_private, made):
        house, run = found_private
        assert "Real, public" not in page(house, run)

    def test_a_report_before(self, made):
        house, run = made
        assert "Real, public" in page(house, run)

    def test_a_card(self, found_private, tmp_path):
        house, run = found_private
        assert "accuracy" not in (house.export(run, tmp_path / "out") / "README.md").read_text()

    def test_other_images_in_the_holdouts_file_are_not_shown(self, made, blots, monkeypatch):
        house, run = made
        spec = run.spec()
        swapped = spec.data.holdout.source.model_copy(update={"path": blots / "train.npz"})
        holdout = spec.data.holdout.model_copy(update={"source": swapped})
        data = spec.data.model_copy(update={"holdout": holdout})
        monkeypatch.setattr(type(run), "spec", lambda _: spec.model_copy(update={"data": data}))
        with pytest.raises(DataError, match="not the one"):
            write_report(run, house.budget)

    def test_the_findings_of_the_release_audit(self, house, blots_spec, declare):
        declare(Facts())
        run = house.finish(house.reserve(blots_spec(CLAIMED)))
        assert audit_release(house.home, run, SilentProgress()).public is None

    def test_a_spec_that_claims_more_releases_nothing(self, house, blots_spec, declare):
        """As a spec that was changed in the run's folder would."""
        declare(Facts())
        run = house.finish(house.reserve(blots_spec(CLAIMED)))
        assert metrics.released(run, house.budget) == {}
        shutil.copy(run.internal / "metrics.json", run.release / "metrics.json")
        assert metrics.released(run, house.budget) == {}
        assert "Real, public" not in page(house, run)
        assert json.loads((run.internal / "metrics.json").read_text())["ceiling"]
