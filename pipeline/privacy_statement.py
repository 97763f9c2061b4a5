"""The privacy statement of a run, from the ledger's rows: an export's `privacy.json`."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from privacy.accounting import epsilon_bounds
from privacy.accounting.guarantee import Guarantee, group, replace_one
from privacy.budget import RELATION, Budget, Reservation
from privacy.mechanisms import Mechanism


def charged_mechanisms(budget: Budget, reservation: Reservation) -> dict[str, Mechanism]:
    """Return the mechanisms of a reservation with the steps that were charged, by component."""
    charged = budget.charged_steps(reservation.id)
    return {
        part.name: part.mechanism.with_steps(charged[part.name])
        for part in reservation.plan
        if charged[part.name]
    }


def privacy_statement(budget: Budget, reservation_id: str) -> dict[str, Any]:
    """Return the statement for everything made under a reservation, computed from raw rows."""
    reservation = budget.reservation(reservation_id)
    delta = budget.odometer(reservation.dataset).delta
    mechanisms = charged_mechanisms(budget, reservation)
    bounds = epsilon_bounds(mechanisms.values(), delta).stated() if mechanisms else {}
    k, unit = reservation.records_per_unit, f"one {reservation.unit}"
    further = [] if reservation.void else guarantees(mechanisms.values(), delta, k)
    return {
        "run": reservation.run_id,
        "dataset": reservation.dataset,
        "records": reservation.records,
        # An owner of several records has a guarantee of their own below.
        "unit": unit if k == 1 else f"one record ({unit} has up to {k})",
        "records_per_unit": k,
        "neighbouring_relation": RELATION,
        "delta": delta,
        "epsilon": bounds,
        "guarantees": [asdict(each) for each in further],
        "mechanisms": [
            {"component": name, **mechanism.to_record()} for name, mechanism in mechanisms.items()
        ],
        "ledger_id": budget.ledger.ledger_id,
        "head_hash": str(budget.ledger.head()),
        "reservation": reservation.id,
        "void": reservation.void,
    }


def guarantees(
    mechanisms: Iterable[Mechanism], delta: float, records_per_unit: int
) -> list[Guarantee]:
    """Return the guarantees for replacing a record and, where a unit has several, adding them."""
    charged = list(mechanisms)
    if not charged:
        return []
    several = [group(charged, delta, records_per_unit)] if records_per_unit > 1 else []
    return [replace_one(charged, delta), *several]
