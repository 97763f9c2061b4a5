"""The budget of a data set over all its runs: declare, reserve, charge, settle, export."""

from privacy.budget.manager import Budget
from privacy.ledger.records import Component, Odometer, Quote, Receipt, Reservation, Settlement

__all__ = ["Budget", "Component", "Odometer", "Quote", "Receipt", "Reservation", "Settlement"]
