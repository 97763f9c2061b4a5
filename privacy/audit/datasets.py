"""What the parts of a data set spent, computed again, and what that means to its units."""

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.accounting.bounds import EpsilonBounds
from privacy.accounting.guarantee import Guarantee, group, replace_one
from privacy.accounting.opacus_rdp import step_rdp
from privacy.accounting.rdp import ORDERS
from privacy.audit.replay import UNBOUND, DatasetReplay, PartReplay, ReservationReplay
from privacy.audit.results import DatasetAudit, PartitionAudit
from privacy.errors import InvalidRequest
from privacy.mechanisms import Mechanism


def epsilons(mechanisms: Sequence[Mechanism], delta: float) -> EpsilonBounds:
    """Return ε of the composition of `mechanisms` at `delta` by three other codes, rounded up."""
    if not mechanisms:
        return EpsilonBounds(0.0, 0.0, 0.0)
    return EpsilonBounds(
        rdp=round_up(opacus_epsilon(mechanisms, delta)),
        pld=_by("pld", mechanisms, delta),
        prv=_by("prv", mechanisms, delta),
    )


def opacus_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return ε by the RDP code of Opacus, over the orders that the admitting filter uses.

    The same orders, because a sparser grid gives a larger ε and would call an honest ledger
    broken; which orders are tried cannot make an ε too small.
    """
    from opacus.accountants.analysis.rdp import get_privacy_spent

    rdp = np.zeros(len(ORDERS))
    with np.errstate(over="ignore"):  # past the range of a double: no order says anything
        for mechanism in mechanisms:
            rdp += mechanism.steps * _one_step(mechanism.with_steps(1))
    finite = np.isfinite(rdp)
    if not finite.any():
        return math.inf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        epsilon, _ = get_privacy_spent(orders=ORDERS[finite], rdp=rdp[finite], delta=delta)
    return max(float(epsilon), 0.0)


@lru_cache(maxsize=4096)
def _one_step(step: Mechanism) -> np.ndarray:
    return np.array([step_rdp(step, float(order)) for order in ORDERS])


def _by(name: str, mechanisms: Sequence[Mechanism], delta: float) -> float | None:
    try:
        return round_up(accountant(name).epsilon(mechanisms, delta))
    except InvalidRequest:
        return None


_MOST_FOR_PRV = 8


def few_enough_for_prv(drawing: Iterable[ReservationReplay]) -> bool:
    """Return whether PRV can be had beside the others in reasonable time.

    It takes seconds of its own for every different mechanism on every part; RDP, which decides,
    and PLD take a tenth of one. An audit of one run asks for less than one of the whole ledger.
    """
    different = {
        (r.dataset, r.partition, r.settled, mechanism.with_steps(1))
        for r in drawing
        for mechanism in r.mechanisms.values()
    }
    return len(different) <= _MOST_FOR_PRV


def audit_dataset(
    name: str,
    dataset: DatasetReplay,
    parts: Sequence[PartReplay],
    drawing: Sequence[ReservationReplay],
    with_prv: bool,
) -> DatasetAudit:
    """Compute a data set's budget again from its parts and the reservations that draw on it."""
    records: dict[str, int | None] = {part.name: part.records for part in parts}
    if any(reservation.partition == UNBOUND for reservation in drawing):
        records[UNBOUND] = None
    by_part = {part: [r for r in drawing if r.partition == part] for part in records}
    partitions = tuple(
        _partition(part, records[part], found, dataset.delta, with_prv)
        for part, found in by_part.items()
    )
    most = max((r.records_per_unit for r in drawing), default=1)
    spent = [_mechanisms(found, in_full=False) for found in by_part.values()]
    return DatasetAudit(
        name=name,
        epsilon=dataset.epsilon,
        delta=dataset.delta,
        closed=dataset.closed,
        unit=", ".join(sorted({r.unit for r in drawing})),
        records_per_unit=most,
        spent=_largest([part.spent for part in partitions]),
        committed=_largest([part.committed for part in partitions]),
        partitions=partitions,
        guarantees=_guarantees([s for s in spent if s], dataset.delta, most),
    )


def _partition(
    name: str,
    records: int | None,
    drawing: Sequence[ReservationReplay],
    delta: float,
    with_prv: bool,
) -> PartitionAudit:
    bounds = epsilons if with_prv else _without_prv
    spent, committed = _mechanisms(drawing, in_full=False), _mechanisms(drawing, in_full=True)
    now = bounds(spent, delta)
    at_most = now if spent == committed else bounds(committed, delta)
    return PartitionAudit(name, records, spent=now, committed=at_most)


def _without_prv(mechanisms: Sequence[Mechanism], delta: float) -> EpsilonBounds:
    if not mechanisms:
        return EpsilonBounds(0.0, 0.0, 0.0)
    try:
        pld = round_up(accountant("pld").epsilon(mechanisms, delta))
    except InvalidRequest:
        pld = None
    return EpsilonBounds(rdp=round_up(opacus_epsilon(mechanisms, delta)), pld=pld, prv=None)


def _mechanisms(drawing: Iterable[ReservationReplay], in_full: bool) -> list[Mechanism]:
    return [mechanism for r in drawing for mechanism in r.paid(in_full)]


def _guarantees(
    spent: Sequence[Sequence[Mechanism]], delta: float, records_per_unit: int
) -> tuple[Guarantee, ...]:
    if not spent:
        return ()
    # The record that is replaced and the one that replaces it lie in one part.
    replaced = max((replace_one(part, delta) for part in spent), key=lambda found: found.epsilon)
    if records_per_unit == 1:
        return (replaced,)
    # A unit may own records in several parts, so what was spent on all of them counts.
    everything = [mechanism for part in spent for mechanism in part]
    return replaced, group(everything, delta, records_per_unit)


def _largest(parts: Sequence[EpsilonBounds]) -> EpsilonBounds:
    """Return the largest of every accountant, None where it could not resolve one of the parts."""
    pld = [part.pld for part in parts]
    prv = [part.prv for part in parts]
    return EpsilonBounds(
        rdp=max((part.rdp for part in parts), default=0.0),
        pld=None if None in pld else max(filter(None, pld), default=0.0),
        prv=None if None in prv else max(filter(None, prv), default=0.0),
    )
