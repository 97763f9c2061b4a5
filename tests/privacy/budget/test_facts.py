"""What a data set is, is the ledger's word; one record that two contents share is found in it."""

import base64

import numpy as np
import pytest

from privacy.audit import audit_ledger
from privacy.budget import Budget
from privacy.budget.facts import Shown
from privacy.budget.identity import SKETCH_SIZE, content_of
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Kind
from privacy.ledger.records import Facts
from privacy.records import LabelledRecords

KEY = bytes(range(32))
DELTA = 1e-5
PATIENT = Facts("patient", 10)
N = 1000


def images(seed, n=N):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


def of(*parts):
    pixels = np.concatenate(parts)
    return content_of(LabelledRecords(pixels, np.zeros(len(pixels), np.int64)), KEY)


BLANK = np.full((1, 4, 4, 1), 7, np.uint8)


@pytest.fixture
def budget(ledger):
    return Budget(ledger)


@pytest.fixture
def ask(budget, plan):
    """Reserve on a data set, declared as private images unless it was declared before."""

    def reserve(name, content, facts=None, run="run", **more):
        if facts is not None or all(o.name != name for o in budget.show()):
            budget.declare(name, 3.0, DELTA, facts or Facts())
        asked = {"plan": plan(), "void": False, "idempotency_key": f"{run}/{name}"}
        return budget.reserve(f"{run}-{name}", name, content, **{**asked, **more})

    return reserve


@pytest.fixture
def old(budget, plan):
    """A data set as an older version declared and bound it: by a sketch, and without facts."""

    def reserve(name, content, **more):
        budget.declare(name, 3.0, DELTA)
        asked = {"unit": "patient", "records_per_unit": 10, "plan": plan(), "void": False}
        return budget.reserve("old", name, content, idempotency_key=f"old/{name}", **asked, **more)

    return reserve


class TestUnit:
    def test_every_run_has_the_officers(self, budget, ask, findings):
        one = ask("faces", of(images(0)), PATIENT)
        again = ask("faces", of(images(0)), run="second")
        for held in (one, again, budget.reservation(one.id)):
            assert (held.unit, held.records_per_unit) == ("patient", 10)
        assert findings() == []

    @pytest.mark.parametrize(
        "said",
        [{"records_per_unit": 1}, {"unit": "image"}, {"unit": "image", "records_per_unit": 1}],
    )
    def test_a_run_that_says_another_is_refused(self, budget, ask, said):
        ask("faces", of(images(0)), PATIENT)
        head = budget.ledger.head()
        with pytest.raises(BudgetRefused, match="which no spec can change"):
            ask("faces", of(images(0)), run="second", **said)
        assert budget.ledger.head() == head

    def test_a_run_may_repeat_them(self, ask):
        ask("faces", of(images(0)), PATIENT, unit="patient", records_per_unit=10)

    def test_they_are_declared_once(self, budget):
        budget.declare("faces", 3.0, DELTA, PATIENT)
        head = budget.ledger.head()
        assert budget.declare("faces", 3.0, DELTA, PATIENT).facts == PATIENT
        for other in (Facts(), Facts("patient", 9), Facts("patient", 10, public=True)):
            with pytest.raises(BudgetRefused, match="for ever"):
                budget.declare("faces", 3.0, DELTA, other)
        assert budget.ledger.head() == head

    @pytest.mark.parametrize(
        "wrong", [{"unit": "two\nlines"}, {"records_per_unit": 0}, {"public": 1}, {"unit": ""}]
    )
    def test_facts_that_make_no_sense(self, wrong):
        with pytest.raises(InvalidRequest):
            Facts(**wrong)

    def test_what_an_older_version_declared_is_asked_for(self, budget, old):
        held = old("faces", of(images(0)))
        with pytest.raises(
            BudgetRefused,
            match=r"umbra budget declare faces --epsilon 3.0 --delta 1e-05 --unit patient "
            r"--records-per-unit 10 --private",
        ):
            budget.facts("faces")
        budget.declare("faces", 3.0, DELTA, Facts("patient", 4))
        assert budget.facts("faces") == Facts("patient", 4)
        # What the older run said was more, so that is what it is reported with.
        assert budget.reservation(held.id).records_per_unit == 10
        (dataset,) = audit_ledger(budget.ledger).datasets
        assert (dataset.unit, dataset.records_per_unit) == ("patient", 10)

    def test_the_audit_finds_a_run_that_was_given_another_unit(
        self, budget, ask, findings, monkeypatch
    ):
        monkeypatch.setattr(
            "privacy.budget.facts.unit_of", lambda *_: {"unit": "patient", "records_per_unit": 1}
        )
        ask("faces", of(images(0)), PATIENT)
        assert any("another unit than the officer declared" in f for f in findings())


class TestOneSharedRecord:
    """Of 60,000 records in either set, one that both hold is found."""

    def test_in_two_data_sets(self, budget, ask, findings):
        ask("one", of(images(0, 60_000)))
        with pytest.raises(BudgetRefused, match="accept-overlap two one"):
            ask("two", of(images(1, 59_999), images(0, 60_000)[[31_234]]))
        budget.accept_overlap("one", "two")
        ask("two", of(images(1, 59_999), images(0, 60_000)[[31_234]]))
        assert findings() == []
        assert any("share records" in note for note in audit_ledger(budget.ledger).notes)

    def test_the_audit_finds_what_the_budget_let_through(self, ask, findings, monkeypatch):
        ask("one", of(images(0)))
        monkeypatch.setattr("privacy.budget.identity._require_no_copy", lambda *_: None)
        ask("two", of(images(1), images(0)[[500]]))
        assert findings() == ["row 11: 'two' (train) shares records with 'one' (train)"]

    def test_in_two_parts_of_one(self, ask, findings, monkeypatch):
        ask("one", of(images(0)))
        shared = of(images(1), images(0)[[500]])
        with pytest.raises(BudgetRefused, match="'train' and 'holdout' of 'one' share records"):
            ask("one", shared, run="second", partition="holdout")
        monkeypatch.setattr("privacy.budget.identity._require_disjoint", lambda *_: None)
        ask("one", shared, run="third", partition="holdout")
        assert any("'one' (holdout) shares records" in f for f in findings())

    def test_with_the_holdout_of_another(self, ask):
        ask("one", of(images(0)), holdout=of(images(1)))
        with pytest.raises(BudgetRefused, match=r"also lie in 'one' \(part 'holdout'\)"):
            ask("two", of(images(2), images(1)[:1]))

    def test_a_blank_record_is_no_evidence(self, ask, findings):
        ask("one", of(images(0), BLANK), holdout=of(images(1), BLANK))
        ask("two", of(images(2), BLANK))
        ask("two", of(images(3), BLANK), run="second", partition="holdout")
        ask("three", of(*[BLANK] * 40))
        assert findings() == []

    def test_what_is_kept_is_keyed_and_small(self, budget, ask):
        content = of(images(0), images(0), BLANK)
        ask("one", content)
        (row,) = budget.ledger.rows(kind=Kind.CONTENT)
        packed = base64.b64decode(row.content["digests"])
        assert len(packed) == 8 * N and row.dataset is None
        found = [packed[i : i + 8] for i in range(0, len(packed), 8)]
        assert found == sorted(set(found))
        pixels = LabelledRecords(images(0), np.zeros(N, np.int64))
        assert content_of(pixels, bytes(32)).digests != content.digests
        assert "digests" not in repr(content)


class TestOlderContent:
    """Older versions kept a sketch of 256 digests, or none."""

    def test_a_digest_in_its_sketch_is_proof(self, old, ask):
        old("old", of(images(0)))
        digests = [of(images(0)[[i]]).sketch[0] for i in range(N)]
        sketched = digests.index(of(images(0)).sketch[0])
        with pytest.raises(BudgetRefused, match="also lie in 'old'"):
            ask("new", of(images(1), images(0)[[sketched]]))

    def test_where_it_cannot_tell_the_officer_is_asked(self, budget, old, ask, findings):
        old("old", of(images(0)))
        with pytest.raises(BudgetRefused, match=r"run on 'old' first.*accept-overlap new old"):
            ask("new", of(images(1)))
        budget.declare("old", 3.0, DELTA, PATIENT)
        ask("old", of(images(0)))
        ask("new", of(images(1)))
        assert findings() == []

    def test_an_accepted_one_passes(self, budget, old, ask, findings):
        old("old", of(images(0)))
        budget.declare("new", 3.0, DELTA, Facts())
        budget.accept_overlap("new", "old")
        ask("new", of(images(1)))
        assert findings() == []

    def test_a_small_one_is_known_whole(self, old, ask, findings):
        old("old", of(images(0, SKETCH_SIZE - 1)))
        ask("new", of(images(1)))
        with pytest.raises(BudgetRefused, match="also lie in 'old'"):
            ask("newer", of(images(2), images(0, SKETCH_SIZE - 1)[-1:]))
        assert findings() == []

    def test_it_is_compared_when_it_is_used_again(self, budget, old, ask):
        old("one", of(images(0)))
        old("two", of(images(1), images(0)[[500]]))  # two sketches do not show it
        for name in ("one", "two"):
            budget.declare(name, 3.0, DELTA, PATIENT)
        budget.accept_overlap("one", "two")
        ask("one", of(images(0)))
        ask("two", of(images(1), images(0)[[500]]))
        assert any("share records" in note for note in audit_ledger(budget.ledger).notes)

    def test_one_without_a_sketch_is_not_passed_over(self, budget, ask):
        first = of(images(0))
        budget.declare("old", 3.0, DELTA)
        with budget.ledger.transaction() as t:
            body = {"fingerprint": first.fingerprint, "records": N}
            t.append(Kind.BIND, body, "old", claim=f"bind:{first.fingerprint}")
        with pytest.raises(BudgetRefused, match="Submit a run on 'old' first"):
            ask("new", of(images(1)))


class TestShown:
    PUBLIC = Facts(public=True, public_holdout=True)
    HOLDOUT = Facts(public_holdout=True)

    def test_what_is_declared_public_is_shown(self, budget, ask):
        held = ask("one", of(images(0)), self.PUBLIC, holdout=of(images(1)))
        assert budget.shown(held.id) == Shown(train=True, holdout=True)
        held = ask("two", of(images(2)), self.HOLDOUT, holdout=of(images(3)))
        assert budget.shown(held.id) == Shown(train=False, holdout=True)
        held = ask("three", of(images(4)), holdout=of(images(5)))
        assert budget.shown(held.id) == Shown(train=False, holdout=False)

    @pytest.mark.parametrize("shared", [1, N])
    def test_a_public_holdout_that_is_the_private_set_is_refused(self, budget, ask, shared):
        budget.declare("one", 3.0, DELTA, self.HOLDOUT)
        head = budget.ledger.head()
        with pytest.raises(BudgetRefused, match=r"data.drop_doubles: true"):
            ask("one", of(images(0)), holdout=of(images(0)[:shared], images(1)[shared:]))
        assert budget.ledger.head() == head

    def test_a_repeated_request_cannot_bring_another_holdout(self, budget, ask):
        first = ask("one", of(images(0)), self.HOLDOUT, holdout=of(images(1)))
        head = budget.ledger.head()
        assert ask("one", of(images(0)), holdout=of(images(1))) == first
        for other in (of(images(0)), of(images(2))):
            with pytest.raises(BudgetRefused, match=r"not the one that run 'run-one' opened"):
                ask("one", of(images(0)), holdout=other)
        ask("one", of(images(0)), run="without")
        with pytest.raises(BudgetRefused, match=r"umbra cancel --give-up without-one"):
            ask("one", of(images(0)), run="without", holdout=of(images(1)))
        assert budget.ledger.head().seq == head.seq + 1

    @pytest.mark.parametrize("shared", [1, N])
    @pytest.mark.parametrize("as_holdout", [True, False])
    def test_private_content_under_a_public_name_is_refused(self, budget, ask, shared, as_holdout):
        ask("private", of(images(0)))
        budget.declare("public", 3.0, DELTA, self.PUBLIC)
        budget.accept_overlap("private", "public")
        taken = of(images(0)[:shared], images(1)[shared:][:, ::-1])
        head = budget.ledger.head()
        with pytest.raises(BudgetRefused, match=r"were declared public|under another name"):
            if as_holdout:
                ask("public", of(images(2)), holdout=taken)
            else:
                ask("public", taken)
        assert budget.ledger.head() == head

    def test_a_private_holdout_is_private_too(self, budget, ask):
        ask("private", of(images(0)), holdout=of(images(1)))
        budget.declare("public", 3.0, DELTA, self.PUBLIC)
        with pytest.raises(BudgetRefused, match=r"'private' \(part 'holdout'\)"):
            ask("public", of(images(2)), holdout=of(images(3), images(1)[:1]))

    def test_what_is_found_to_be_private_later_is_not_shown_again(self, budget, ask):
        held = ask("public", of(images(0)), self.PUBLIC, holdout=of(images(1)))
        budget.declare("private", 3.0, DELTA, Facts())
        budget.accept_overlap("public", "private")
        ask("private", of(images(2), images(1)[:1]))
        assert budget.shown(held.id) == Shown(train=True, holdout=False)
        ask("private", of(images(3), images(0)[:1]), run="second", partition="holdout")
        assert budget.shown(held.id) == Shown(train=False, holdout=False)

    def test_what_an_older_run_opened_is_not_shown(self, budget, old):
        held = old("old", of(images(0)))
        assert budget.shown(held.id) == Shown()
        budget.declare("old", 3.0, DELTA, Facts("patient", 10, public=True, public_holdout=True))
        assert budget.shown(held.id) == Shown(train=True, holdout=False)

    def test_where_the_ledger_cannot_tell_nothing_is_shown(self, budget, old, ask):
        old("old", of(images(0)))
        budget.declare("public", 3.0, DELTA, self.PUBLIC)
        budget.accept_overlap("public", "old")
        with pytest.raises(BudgetRefused, match="nothing shows that they are not"):
            ask("public", of(images(1)))
        budget.declare("old", 3.0, DELTA, PATIENT)
        ask("old", of(images(0)))
        assert budget.shown(ask("public", of(images(1))).id).train
