"""Accountants: what a list of mechanisms costs, and the noise that keeps within a target."""

from privacy.accounting.base import Accountant
from privacy.accounting.opacus_rdp import OpacusRDPAccountant
from privacy.accounting.pld import PLDAccountant
from privacy.accounting.prv import PRVAccountant
from privacy.accounting.rdp import RDPAccountant
from privacy.errors import InvalidRequest

# Importing this package stays cheap: each accountant imports its library when first asked.
ACCOUNTANTS: dict[str, type[Accountant]] = {
    RDPAccountant.name: RDPAccountant,
    PRVAccountant.name: PRVAccountant,
    PLDAccountant.name: PLDAccountant,
    OpacusRDPAccountant.name: OpacusRDPAccountant,
}


def accountant(name: str) -> Accountant:
    """Return the accountant called `name`; raises InvalidRequest if there is none."""
    if name not in ACCOUNTANTS:
        raise InvalidRequest(f"accountant: expected one of {sorted(ACCOUNTANTS)}, found {name!r}.")
    return ACCOUNTANTS[name]()


__all__ = ["ACCOUNTANTS", "Accountant", "accountant"]
