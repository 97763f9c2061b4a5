"""What a reader of an audit should know and is not broken."""

from collections.abc import Iterable, Iterator, Sequence

from privacy.accounting.rounding import round_up
from privacy.audit.contents import ContentsReplay, connected
from privacy.audit.recompute import opacus_epsilon
from privacy.audit.replay import Replay, ReservationReplay
from privacy.audit.results import DatasetAudit
from privacy.mechanism import Mechanism


def notes(
    replay: Replay, reservations: Iterable[ReservationReplay], datasets: Sequence[DatasetAudit]
) -> list[str]:
    """Return notes on void runs, on units of many records and on data sets that share records."""
    names = {dataset.name for dataset in datasets}
    return [
        *_void(reservations),
        *_units(datasets),
        *_shared(replay, names),
    ]


def _void(reservations: Iterable[ReservationReplay]) -> Iterator[str]:
    for reservation in reservations:
        if reservation.void:
            yield f"Run {reservation.run_id} was seeded: it is void and promises no privacy."


def _units(datasets: Iterable[DatasetAudit]) -> Iterator[str]:
    for dataset in datasets:
        for guarantee in dataset.guarantees:
            if guarantee.records == dataset.records_per_unit > 1:
                yield (
                    f"{dataset.name!r}: a unit owns up to {guarantee.records} records and is "
                    f"promised ε={guarantee.epsilon}, δ={guarantee.delta:g} by group privacy "
                    f"({guarantee.method})."
                )


def _shared(replay: Replay, names: set[str]) -> Iterator[str]:
    """Basic composition: a record that several data sets hold pays for all of them."""
    contents = replay.contents
    for group in connected(contents.accepted.keys() | contents.sharing):
        if names.isdisjoint(group):
            continue
        epsilon = sum(_most_spent(replay, name) for name in group)
        delta = sum(replay.datasets[name].delta for name in group)
        yield (
            f"{', '.join(map(repr, group))} share records ({_how(contents, set(group))}): a record "
            f"that lies in all of them is promised ε={epsilon:.4f}, δ={delta:g}, which is what "
            "their budgets have spent together."
        )


def _how(contents: ContentsReplay, group: set[str]) -> str:
    accepted = [
        f"accepted in row {row.seq}" + (f" by {row.author}" if row.author else "")
        for pair, row in contents.accepted.items()
        if pair <= group
    ]
    if any(pair <= group and pair not in contents.accepted for pair in contents.sharing):
        accepted.append("a few of them, as their sketches show")
    return "; ".join(accepted)


def _most_spent(replay: Replay, name: str) -> float:
    spent: dict[str, list[Mechanism]] = {}
    for reservation in replay.reservations.values():
        if reservation.dataset == name:
            spent.setdefault(reservation.partition, []).extend(reservation.paid(in_full=False))
    delta = replay.datasets[name].delta
    return max((round_up(opacus_epsilon(m, delta)) for m in spent.values() if m), default=0.0)
