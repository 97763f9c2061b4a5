"""The trade-off curve: how many members an attacker finds at most, and at how many false alarms.

The attacker knows all records but those of one person, and everything that was released, and
guesses whether that person was among the data (hypothesis testing: Wasserman and Zhou 2010; Dong,
Roth and Su 2022, "Gaussian differential privacy"). Power is the probability to say so of somebody
who was, the false-positive rate that of somebody who was not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from privacy.accounting.base import MAX_EPSILON, collapse, round_up
from privacy.accounting.guarantee import group_distribution
from privacy.accounting.pld import composed, interval_for
from privacy.accounting.rdp import RDPAccountant
from privacy.mechanisms import Mechanism
from privacy.validation import open_probability, positive_int

# The false-positive rates that are shown.
RATES = (0.1, 0.01, 0.001)

# At so many values of ε the lines of `trade_off` bound the curve from above. More come closer to
# it, by less than the last digit that is stated.
_LINES = 600

# μ is found at so many rates, and overstated by at most what lies between two: 0.002 or less.
_RATES_OF_MU = 2000

_PLD = "PLD"
_GROUP = "PLD of the group"
_COMPOSED = "k-fold composition of the curve of one record, by PLD"


@dataclass(frozen=True)
class TradeOff:
    """Upper bounds on the power of every attack on one person, rounded up to four decimals."""

    records: int  # how many records the person owns
    power: dict[str, float]  # by the false-positive rate, each of RATES
    # The least μ at which Gaussian DP allows as much at every rate from δ to one half; None where
    # no number can be stated.
    gdp_mu: float | None
    method: str  # how the curve was found
    # Power at a rate α is at most `intercepts` + `slopes` α, for every pair; `folds` times over.
    _intercepts: np.ndarray = field(repr=False, compare=False)
    _slopes: np.ndarray = field(repr=False, compare=False)
    _folds: int = field(default=1, repr=False, compare=False)

    def at(self, rates: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the power at false-positive rates in [0, 1], any shape; not rounded."""
        return _power(self._intercepts, self._slopes, self._folds, np.asarray(rates, float))

    def sentence(self, unit: str) -> str:
        """Return what the curve means, in one sentence; see `meaning`."""
        return meaning(self.power, self.records, unit)

    def to_record(self, unit: str) -> dict[str, Any]:
        """Return the numbers and the sentence as plain JSON values."""
        numbers = {"records": self.records, "power": self.power, "gdp_mu": self.gdp_mu}
        return {**numbers, "method": self.method, "meaning": self.sentence(unit)}


def meaning(power: Mapping[str, float], records: int, unit: str) -> str:
    """Return what power at false-positive rates means to a reader who is no statistician.

    Where it is about more than one record, they are those of a `unit`, such as a patient.
    """
    member = f"{unit}, with up to {records} records," if records > 1 else "record"
    rates = sorted(power, key=float, reverse=True)
    wrong = _listed(f"{100 * float(rate):g}" for rate in rates)
    right = _listed(f"{100 * power[rate]:.2f}" for rate in rates)
    return (
        f"Somebody who knows everything but whether a particular {member} was used, and who "
        f"wrongly suspects no more than {wrong} % of those that were not, recognises at most "
        f"{right} % of those that were."
    )


def _listed(figures: Iterable[str]) -> str:
    *others, last = figures
    return f"{', '.join(others)} or {last}"


def trade_offs(
    parts: Iterable[Iterable[Mechanism]], delta: float, records_per_unit: int
) -> tuple[TradeOff, ...]:
    """Return the curve for one record and, where a unit has several, for a unit; none unspent.

    `parts` are the mechanisms on each part of the data. A record lies in one: its curve is that
    which finds most at 1 %. The records of a unit may lie in all.
    """
    spent = [mechanisms for part in parts if (mechanisms := tuple(part))]
    if not spent:
        return ()
    one = max((trade_off(part, delta) for part in spent), key=lambda found: found.power["0.01"])
    if records_per_unit == 1:
        return (one,)
    return one, trade_off([m for part in spent for m in part], delta, records_per_unit)


def trade_off(mechanisms: Sequence[Mechanism], delta: float, records: int = 1) -> TradeOff:
    """Return the trade-off curve of the composition of `mechanisms`, for k = `records` records.

    By privacy loss distributions, rounded pessimistically, both directions of add and remove: for
    every ε, an event that has probability α without the person has at most δ(ε) + e^ε α with them,
    and at most 1 - e^-ε (1 - δ(ε) - α), which is the other direction (Dong et al., Proposition
    2.12). Power is at most the least of them.

    For k records the distribution is that of `group`: a Poisson sample takes Binomial(k, q) of
    them, and the mixture of Gaussians at as many clip norms dominates whatever they contribute
    (Ganesh 2024). Where it cannot be resolved the curve of one record is applied k times over (Dong
    et al., Theorem 2.14): of k + 1 data sets, each one record further, an event that has
    probability at most α in one has at most power(α) in the next.

    `delta` sets the width of the grid, and is the least rate for which μ is stated. Where nothing
    can be said, power is one. Raises InvalidRequest for bad values.
    """
    delta, k = open_probability("delta", delta), positive_int("records", records)
    scale = RDPAccountant().epsilon(mechanisms, delta)
    total, method, folds = None, _PLD if k == 1 else _GROUP, 1
    if mechanisms and k > 1:
        total = group_distribution(mechanisms, delta, k)
    if mechanisms and total is None and scale <= MAX_EPSILON:
        steps = tuple(collapse(mechanisms))
        total = composed(steps, interval_for(steps, scale))
        method, folds = (method, 1) if k == 1 else (_COMPOSED, k)
    reach = scale if folds > 1 else k * scale
    lines = _lines(total, reach, nothing=not mechanisms)
    power = {f"{rate:g}": _stated(_power(*lines, folds, np.array(rate))) for rate in RATES}
    return TradeOff(k, power, _mu(lines, folds, delta), method, *lines, folds)


def _lines(total: Any | None, reach: float, nothing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return intercepts and slopes of lines above the curve of the library's distribution."""
    if total is None:
        # Without a release power is the rate itself; without a bound it may be one.
        return np.array([0.0 if nothing else 1.0]), np.array([1.0 if nothing else 0.0])
    epsilon = np.linspace(0.0, min(1.5 * reach + 1.0, 700.0), _LINES)
    delta = np.minimum(total.get_delta_for_epsilon(epsilon), 1.0)
    # The distribution reports the larger δ of both directions, so one δ serves both lines.
    intercepts = np.concatenate([delta, 1 - np.exp(-epsilon) * (1 - delta)])
    return intercepts, np.exp(np.concatenate([epsilon, -epsilon]))


def _power(intercepts: np.ndarray, slopes: np.ndarray, folds: int, rates: np.ndarray) -> np.ndarray:
    for _ in range(folds):
        least = np.min(intercepts + slopes * rates[..., None], axis=-1)
        rates = np.clip(least, rates, 1.0)
    return rates


def _stated(power: np.ndarray) -> float:
    return min(round_up(float(power)), 1.0)


def _mu(lines: tuple[np.ndarray, np.ndarray], folds: int, delta: float) -> float | None:
    """Return the least μ with Φ(Φ⁻¹(α) + μ) >= power(α) for α from `delta` to one half."""
    from scipy.special import ndtr, ndtri

    quantiles = np.linspace(ndtri(min(delta, 0.25)), 0.0, _RATES_OF_MU)
    power = _power(*lines, folds, ndtr(quantiles))
    # Power grows with the rate, so between two rates it is at most that at the larger.
    mu = float(np.max(ndtri(power[1:]) - quantiles[:-1]))
    return round_up(max(mu, 0.0)) if math.isfinite(mu) else None
