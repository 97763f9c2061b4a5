"""What a run promises, from the ledger's rows: the content of an export's `privacy.json`."""

from typing import Any

from privacy.accounting import accountant
from privacy.accounting.rounding import round_up
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


def epsilons(mechanisms: list[Mechanism], delta: float) -> dict[str, float]:
    """Return upper bounds on ε of the composition by RDP, PRV and PLD, rounded up.

    An accountant that cannot resolve the request is left out; RDP always can.
    """
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
    return {
        "run": reservation.run_id,
        "dataset": reservation.dataset,
        "records": reservation.records,
        "unit": reservation.unit,
        "records_per_unit": reservation.records_per_unit,
        "neighbouring_relation": RELATION,
        "delta": delta,
        "epsilon": epsilons(list(mechanisms.values()), delta) if mechanisms else {},
        "mechanisms": [
            {"component": name, **mechanism.to_record()} for name, mechanism in mechanisms.items()
        ],
        "ledger_id": budget.ledger.ledger_id,
        "head_hash": str(budget.ledger.head()),
        "reservation": reservation.id,
        "void": reservation.void,
    }
