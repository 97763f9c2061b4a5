"""Real images: what a user would try to get a second budget."""

import numpy as np
import pytest

from privacy.budget.identity import Content, content_of
from privacy.errors import BudgetRefused
from privacy.ledger import Kind
from privacy.records import LabelledRecords

KEY = bytes(range(32))
N = 1000


def images(seed, n=N):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


def of(pixels, labels=None):
    labels = np.zeros(len(pixels), np.int64) if labels is None else labels
    return content_of(LabelledRecords(pixels, labels), KEY)


PRIVATE = images(0)


@pytest.fixture
def other(budget, reserve):
    """Reserve under another name, beside the private set."""
    reserve(content=of(PRIVATE))
    budget.declare("other", 3.0, 1e-5)

    def ask(pixels, labels=None, **more):
        return reserve("k2", dataset="other", content=of(pixels, labels), **more)

    return ask


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(PRIVATE[1:], id="one dropped"),
        pytest.param(np.concatenate([PRIVATE, images(1, 1)]), id="one added"),
        pytest.param(np.concatenate([PRIVATE, PRIVATE]), id="all repeated"),
        pytest.param(np.concatenate([PRIVATE[:500], images(1, 500)]), id="half replaced"),
        pytest.param(PRIVATE[:100], id="a tenth"),
        pytest.param(np.concatenate([PRIVATE, images(1, 3 * N)]), id="hidden among others"),
    ],
)
def test_a_changed_copy_is_refused(other, budget, pixels):
    head = budget.ledger.head()
    with pytest.raises(BudgetRefused, match="accept-overlap other digits"):
        other(pixels)
    assert budget.ledger.head() == head


def test_a_relabelled_copy_is_refused(other):
    with pytest.raises(BudgetRefused, match="use the name 'digits'"):
        other(PRIVATE, np.arange(N))


def test_the_message_holds_no_figure_of_the_data(other):
    """How much is shared was computed from private records, so it is not said."""
    texts = set()
    for part in (300, 600, 900):
        with pytest.raises(BudgetRefused) as caught:
            other(np.concatenate([PRIVATE[:part], images(1, N - part)]))
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_other_images_are_another_data_set(other, budget, findings):
    other(images(1))
    assert findings() == []


def test_a_few_shared_images_pass(other):
    other(np.concatenate([PRIVATE[:5], images(1, N - 5)]))


@pytest.mark.parametrize(("digests", "near"), [(20, True), (21, False)])
def test_five_percent_is_the_least_that_is_refused(budget, reserve, findings, digests, near):
    reserve(content=Content("print-1", N, tuple(f"{i:016x}" for i in range(200))))
    budget.declare("other", 3.0, 1e-5)
    sketch = tuple(f"{i:016x}" for i in [0, *range(1000, 999 + digests)])
    asked = {"dataset": "other", "content": Content("print-2", N, sketch)}
    if near:
        with pytest.raises(BudgetRefused, match="accept-overlap"):
            reserve("k2", **asked)
    else:
        reserve("k2", **asked)
    assert findings() == []


def test_accepted_overlap_passes_in_either_order(other, budget, findings):
    budget.accept_overlap("digits", "other")
    other(np.concatenate([PRIVATE[:500], images(1, 500)]))
    assert findings() == []


def test_acceptance_is_for_these_two_names(other, budget):
    budget.declare("third", 3.0, 1e-5)
    budget.accept_overlap("third", "digits")
    budget.accept_overlap("third", "other")
    with pytest.raises(BudgetRefused, match="accept-overlap other digits"):
        other(PRIVATE[1:])


def test_an_exact_copy_is_never_accepted(other, budget):
    budget.accept_overlap("digits", "other")
    with pytest.raises(BudgetRefused, match="content of the data set 'digits' under another name"):
        other(PRIVATE[::-1])


def test_another_part_does_not_hide_a_copy(other):
    with pytest.raises(BudgetRefused, match="accept-overlap other digits"):
        other(PRIVATE[1:], partition="holdout")


def test_the_replay_finds_what_the_budget_let_through(other, findings, monkeypatch):
    monkeypatch.setattr("privacy.budget.identity.NEAR_COPY", 2.0)
    other(PRIVATE[1:])
    assert any("'other' shares records with 'digits'" in f for f in findings())


def test_an_acceptance_afterwards_does_not_heal(other, budget, findings, monkeypatch):
    monkeypatch.setattr("privacy.budget.identity.NEAR_COPY", 2.0)
    other(PRIVATE[1:])
    budget.accept_overlap("digits", "other")
    assert findings() != []


def test_the_replay_finds_parts_that_share_a_record(reserve, findings, monkeypatch):
    monkeypatch.setattr("privacy.budget.identity._require_disjoint", lambda *_: None)
    reserve(content=of(PRIVATE))
    reserve("k2", partition="holdout", content=of(np.concatenate([PRIVATE, images(1, 9 * N)])))
    assert any("'train' and 'holdout' of 'digits' share records" in f for f in findings())


def test_a_name_bound_by_schema_one_is_compared_when_used_again(budget, reserve):
    first = of(PRIVATE)
    body = {"fingerprint": first.fingerprint, "records": N}
    with budget.ledger.transaction() as t:
        t.append(Kind.BIND, body, "digits", claim=f"bind:{first.fingerprint}")
    budget.declare("other", 3.0, 1e-5)
    reserve("k2", dataset="other", content=of(PRIVATE[1:]))  # nothing to compare with yet
    with pytest.raises(BudgetRefused, match="accept-overlap digits other"):
        reserve(content=first)
