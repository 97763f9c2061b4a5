"""What a run promises, from the ledger's rows: the content of an export's `privacy.json`."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from privacy.accounting import accountant
from privacy.accounting.rounding import round_up
from privacy.audit.recompute import unit_guarantee
from privacy.budget import RELATION, Budget, Reservation
from privacy.errors import InvalidRequest
from privacy.mechanism import Mechanism


def charged_mechanisms(budget: Budget, reservation: Reservation) -> dict[str, Mechanism]:
    """Return the mechanisms of a reservation with the steps that were charged, by component."""
    charged = budget.charged_steps(reservation.id)
    return {
        part.name: part.mechanism.with_steps(charged[part.name])
        for part in reservation.plan
        if charged[part.name]
    }


def epsilons(mechanisms: Iterable[Mechanism], delta: float) -> dict[str, float]:
    """Return upper bounds on ε of the composition by RDP, PRV and PLD, rounded up.

    An accountant that cannot resolve the request is left out; RDP always can.
    """
    return dict(_epsilons(tuple(mechanisms), delta))


@lru_cache(maxsize=64)
def _epsilons(mechanisms: tuple[Mechanism, ...], delta: float) -> dict[str, float]:
    bounds = {}
    for name in ("rdp", "prv", "pld"):
        try:
            bounds[name] = round_up(accountant(name).epsilon(mechanisms, delta))
        except InvalidRequest:
            if name == "rdp":
                raise
    return bounds


def promise(budget: Budget, reservation_id: str) -> dict[str, Any]:
    """Return what may be said of everything made under a reservation (`synth.export.promise`).

    Every number is computed from raw rows now, none is read back.
    """
    reservation = budget.reservation(reservation_id)
    delta = budget.odometer(reservation.dataset).delta
    mechanisms = charged_mechanisms(budget, reservation)
    bounds = epsilons(mechanisms.values(), delta) if mechanisms else {}
    return {
        "run": reservation.run_id,
        "dataset": reservation.dataset,
        "records": reservation.records,
        "unit": _unit(reservation, bounds, delta),
        "records_per_unit": reservation.records_per_unit,
        "neighbouring_relation": RELATION,
        "delta": delta,
        "epsilon": bounds,
        "mechanisms": [
            {"component": name, **mechanism.to_record()} for name, mechanism in mechanisms.items()
        ],
        "ledger_id": budget.ledger.ledger_id,
        "head_hash": str(budget.ledger.head()),
        "reservation": reservation.id,
        "void": reservation.void,
    }


def _unit(reservation: Reservation, bounds: dict[str, float], delta: float) -> str:
    """Return what ε and δ are about, and what an owner of several records is promised instead."""
    k = reservation.records_per_unit
    if k == 1 or not bounds:
        return f"one {reservation.unit}"
    if reservation.void:
        return f"one record (one {reservation.unit} has up to {k})"
    epsilon, unit_delta = unit_guarantee(bounds["rdp"], delta, k)
    return (
        f"one record; one {reservation.unit} has up to {k} and is promised "
        f"ε = {round_up(epsilon)}, δ = {unit_delta:.17g} by group privacy"
    )
