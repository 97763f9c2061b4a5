"""Accountants: what a list of mechanisms costs, by three kinds of code."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pkgutil import resolve_name

from privacy.accounting.base import Accountant, round_up
from privacy.errors import InvalidRequest
from privacy.mechanisms import Mechanism

# By address, so that each imports its library when it is first used: these take seconds.
ACCOUNTANTS = {
    "rdp": "privacy.accounting.rdp:RDPAccountant",
    "prv": "privacy.accounting.prv:PRVAccountant",
    "pld": "privacy.accounting.pld:PLDAccountant",
}


def accountant(name: str) -> Accountant:
    """Return the accountant called `name`; raises InvalidRequest if there is none."""
    if name not in ACCOUNTANTS:
        raise InvalidRequest(f"accountant: expected one of {sorted(ACCOUNTANTS)}, found {name!r}.")
    found: type[Accountant] = resolve_name(ACCOUNTANTS[name])
    return found()


@dataclass(frozen=True)
class EpsilonBounds:
    """Upper bounds on ε of one composition at one δ, each rounded up to four decimals."""

    rdp: float  # by Rényi DP, which admits; it can always state a number
    # By privacy random variables; None where they can state none (ε in the hundreds, or a δ that
    # double precision cannot resolve) or were not requested.
    prv: float | None = None
    pld: float | None = None  # by privacy loss distributions; None as `prv`

    def to_dict(self) -> dict[str, float | None]:
        """Return all bounds by the accountant's name."""
        return asdict(self)

    def stated(self) -> dict[str, float]:
        """Return the bounds that could be stated, by the accountant's name."""
        return {name: bound for name, bound in self.to_dict().items() if bound is not None}


def epsilon_bounds(mechanisms: Iterable[Mechanism], delta: float) -> EpsilonBounds:
    """Return upper bounds on ε of the composition of `mechanisms` at `delta`.

    >>> from privacy.mechanisms import Gaussian
    >>> epsilon_bounds([Gaussian(noise_multiplier=5.0)], delta=1e-5)
    EpsilonBounds(rdp=0.7946, prv=0.7296, pld=0.7256)
    """
    return _bounds(tuple(mechanisms), delta)


# A plan, its privacy statement and its report need the same composition.
@lru_cache(maxsize=64)
def _bounds(mechanisms: tuple[Mechanism, ...], delta: float) -> EpsilonBounds:
    return EpsilonBounds(
        rdp=round_up(accountant("rdp").epsilon(mechanisms, delta)),
        prv=informative_epsilon("prv", mechanisms, delta),
        pld=informative_epsilon("pld", mechanisms, delta),
    )


def informative_epsilon(name: str, mechanisms: Sequence[Mechanism], delta: float) -> float | None:
    """Return ε by an accountant that admits nothing, rounded up; None where it can state none."""
    try:
        epsilon = accountant(name).epsilon(mechanisms, delta)
    except InvalidRequest:
        return None
    return round_up(epsilon) if math.isfinite(epsilon) else None
