"""The ledger as a training sees it."""

from typing import Protocol


class Meter(Protocol):
    """Charges one reservation; the ledger, or an actor in front of it, stands behind."""

    def charge(self, component: str, steps: int) -> str:
        """Charge steps durably before they run; return the ledger's head, to be recorded.

        Raises:
            BudgetRefused: the reservation has fewer steps left; nothing may run.
        """
        ...

    def remaining(self, component: str) -> int:
        """Return how many reserved steps were never charged."""
        ...
