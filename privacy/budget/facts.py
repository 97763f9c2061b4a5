"""What a data set is: the facts that an officer declared, and what may be shown by them."""

import shlex
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from privacy import validation
from privacy.budget import identity
from privacy.budget.identity import HOLDOUT, Content, Partition
from privacy.errors import BudgetRefused
from privacy.ledger import Kind, Row, Transaction, View
from privacy.ledger.records import Facts, Reservation


@dataclass(frozen=True)
class Shown:
    """Whether the training images and the holdout of a run may be shown, as the ledger says."""

    train: bool = False
    holdout: bool = False


def facts_of(view: View, dataset: str) -> Facts | None:
    """Return what an officer declared a data set to be, None where nobody has."""
    row = view.by_claim(f"facts:{dataset}")
    return None if row is None else Facts(**row.content)


def declare_facts(t: Transaction, declaration: Row, facts: Facts) -> None:
    """Append a data set's facts; the same again changes nothing, others raise BudgetRefused."""
    name = str(declaration.dataset)
    known = facts_of(t, name)
    if known is None:
        t.append(Kind.FACTS, facts.to_record(), dataset=name, claim=f"facts:{name}")
    elif known != facts:
        raise BudgetRefused(f"{name!r} was declared, for ever, as: {known}; found: {facts}.")


def require_facts(view: View, declaration: Row) -> Facts:
    """Return a data set's facts; raise BudgetRefused, with the command to type, where it has none.

    The command repeats what earlier runs said: an officer has to confirm or correct it.
    """
    name, limits = str(declaration.dataset), declaration.content
    known = facts_of(view, name)
    if known is not None:
        return known
    said = [row.content for row in view.of(Kind.RESERVE, name)]
    unit = said[-1]["unit"] if said else "image"
    most = max((body["records_per_unit"] for body in said), default=1)
    raise BudgetRefused(
        f"The ledger does not say what {name!r} is: its unit of privacy, how many records one unit "
        "owns, and whether its images are public. No run goes on it before an officer declares "
        f"that: umbra budget declare {name} --epsilon {limits['epsilon']!r} --delta "
        f"{limits['delta']!r} --unit {shlex.quote(unit)} --records-per-unit {most} --private (or "
        "--public; --public-holdout where only the holdout is)."
    )


def unit_of(
    view: View, dataset: str, unit: str | None, records_per_unit: int | None
) -> dict[str, Any]:
    """Return the unit and its most records as a `reserve` row states them: the data set's facts.

    Raises BudgetRefused on a request that states others. Only a data set that an older version
    declared has no facts: then they are the request's.
    """
    asked = {"unit": unit, "records_per_unit": records_per_unit}
    facts = facts_of(view, dataset)
    if facts is None:
        validation.text_line("privacy unit", unit)
        validation.positive_int("records_per_unit", records_per_unit)
        return asked
    declared = {name: getattr(facts, name) for name in asked}
    for name, value in asked.items():
        if value not in (None, declared[name]):
            raise BudgetRefused(
                f"{dataset!r} was declared with {name} = {declared[name]!r}, which no spec can "
                f"change; found {value!r}. State the declared one, or leave it out."
            )
    return declared


def reservation(view: View, opening: Row) -> Reservation:
    """Return a reservation by its row, with the unit that its data set's facts say by now.

    Of what an older version's run and the officer said, the larger number of records counts.
    """
    made = Reservation.from_row(opening)
    facts = facts_of(view, made.dataset)
    if facts is None:
        return made
    most = max(made.records_per_unit, facts.records_per_unit)
    return replace(made, unit=facts.unit, records_per_unit=most)


def open_holdout(
    t: Transaction, run_id: str, declaration: Row, content: Content, train: Content
) -> None:
    """Record that a run opens this content as its holdout, beside its training set.

    Raises BudgetRefused where it is declared public, and shares a record with its own private
    training set or with any other private content.
    """
    facts, dataset = require_facts(t, declaration), str(declaration.dataset)
    if facts.public_holdout and not facts.public:
        _require_apart(dataset, content, train)
    require_showable(t, dataset, HOLDOUT, content)
    identity.record(t, content)
    body = {"run": run_id, "fingerprint": content.fingerprint, "records": content.records}
    t.append(Kind.HOLDOUT, body, dataset, claim=f"holdout:{run_id}")


def require_opened(view: View, run_id: str, content: Content) -> None:
    """Raise BudgetRefused where this is not the content that a run opened as its holdout."""
    # What is shown is decided by the content that was opened: another was never compared.
    row = view.by_claim(f"holdout:{run_id}")
    if row is None or row.content["fingerprint"] != content.fingerprint:
        raise BudgetRefused(
            f"The holdout is not the one that run {run_id!r} opened when its budget was reserved: "
            "it changed since, or an older version recorded none. Restore it, or give the run up "
            f"(umbra cancel --give-up {run_id}), which returns what was not charged, and submit a "
            "new one."
        )


def _require_apart(dataset: str, holdout: Content, train: Content) -> None:
    mine = identity.all_digests(train.digests, train.sketch)
    theirs = identity.all_digests(holdout.digests, holdout.sketch)
    apart = mine is not None and theirs is not None and not np.intersect1d(mine, theirs).size
    if train.fingerprint == holdout.fingerprint or not apart:
        raise BudgetRefused(
            f"The holdout of {dataset!r} was declared public and shares images with its training "
            "set, which is private: showing the one would publish the other. Set "
            "data.drop_doubles: true, which leaves them out of the training set, or take them out "
            "of one of the two."
        )


def require_showable(view: View, dataset: str, partition: str, content: Content) -> None:
    """Raise BudgetRefused on content that is declared public and holds a private record."""
    if not _said_public(view, dataset, partition):
        return
    holder = _private_holder(view, content)
    if holder is not None:
        raise BudgetRefused(
            f"The images of {dataset!r} (part {partition!r}) were declared public, but some of "
            f"them are private, or nothing shows that they are not: they may lie in "
            f"{holder.dataset!r} (part {holder.name!r}). Take them out, or declare a data set of "
            "another name that is private."
        )


def shown(view: View, opening: Row) -> Shown:
    """Return what may be shown now of the images behind the reservation that `opening` opened.

    An older run's holdout is not known to the ledger, and may not be shown.
    """
    dataset, body = str(opening.dataset), opening.content
    parts = {part.fingerprint: part for part in identity.holdings(view) if part.dataset == dataset}
    opened = view.by_claim(f"holdout:{body['run']}")
    holdout = None if opened is None else Partition.from_row(opened)
    return Shown(_may_be_shown(view, parts.get(body["fingerprint"])), _may_be_shown(view, holdout))


def _may_be_shown(view: View, part: Partition | None) -> bool:
    if part is None or not _said_public(view, part.dataset, part.name):
        return False
    return _private_holder(view, part) is None


def _said_public(view: View, dataset: str, partition: str) -> bool:
    facts = facts_of(view, dataset)
    return facts is not None and (facts.public_holdout if partition == HOLDOUT else facts.public)


def _private_holder(view: View, content: Content | Partition) -> Partition | None:
    """Return a private part or holdout that shares a record with content, or may do so."""
    for part in identity.holdings(view):
        # What nobody declared public is private.
        private = not _said_public(view, part.dataset, part.name)
        if private and identity.shares(view, content, part) is not False:
            return part
    return None
