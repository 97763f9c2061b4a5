"""The budget of a data set over all its runs: declare, reserve, charge, settle, export."""

from privacy.budget.manager import Budget
from privacy.ledger.records import (
    RELATION,
    Component,
    Odometer,
    Quote,
    Receipt,
    Reservation,
    Settlement,
    StepsExhausted,
)

__all__ = [
    "RELATION",
    "Budget",
    "Component",
    "Odometer",
    "Quote",
    "Receipt",
    "Reservation",
    "Settlement",
    "StepsExhausted",
]
