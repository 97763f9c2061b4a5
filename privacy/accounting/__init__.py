"""Accountants: what a list of mechanisms costs, and the noise that keeps within a target."""

from privacy.accounting.base import Accountant
from privacy.accounting.pld import PLDAccountant
from privacy.accounting.prv import PRVAccountant
from privacy.accounting.rdp import RDPAccountant
from privacy.errors import InvalidRequest

# Importing this package stays cheap: each accountant imports its library when it is first used.
ACCOUNTANTS: dict[str, type[Accountant]] = {
    found.name: found for found in (RDPAccountant, PRVAccountant, PLDAccountant)
}


def accountant(name: str) -> Accountant:
    """Return the accountant called `name`; raises InvalidRequest if there is none."""
    if name not in ACCOUNTANTS:
        raise InvalidRequest(f"accountant: expected one of {sorted(ACCOUNTANTS)}, found {name!r}.")
    return ACCOUNTANTS[name]()
