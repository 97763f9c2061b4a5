"""Memorisation: synthetic images that lie too near the training images, and what an attacker gains.

Nothing here proves or disproves differential privacy. A small distance may be chance, and a large
one has been shown for generators that leak; what is promised is in the ledger alone.
"""

from eval.memorisation.copies import Copies, copies
from eval.memorisation.distances import nearest
from eval.memorisation.membership import (
    Membership,
    OperatingPoint,
    membership,
    membership_attacks,
)

CAVEAT = (
    "Distances prove nothing about differential privacy: there is no distance that passes. They "
    "show plain copies and what one simple attacker gains; the guarantee rests on the ledger."
)

__all__ = [
    "CAVEAT",
    "Copies",
    "Membership",
    "OperatingPoint",
    "copies",
    "membership",
    "membership_attacks",
    "nearest",
]
