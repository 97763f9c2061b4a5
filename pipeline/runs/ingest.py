"""Ingest: load the private set, compare it with the spec, and reserve its budget."""

import json
from collections.abc import Mapping
from time import monotonic

from pipeline.plan import Plan
from pipeline.runs.dataset_identity import HOLDOUT, TRAIN, DatasetIdentity, load_partition
from pipeline.runs.directory import RunDirectory
from pipeline.runs.ledger_access import record_head
from pipeline.spec import Spec
from privacy.budget import Budget, Reservation, Settlement
from privacy.budget.identity import Content, content_of, count_doubles, shared_records
from privacy.errors import DataError
from privacy.records import LabelledRecords
from synth.storage import write_json

INGEST = "ingest"
# How many doubles there are is computed from private records without noise: it stays inside.
DOUBLES = "doubles.json"
# The field of the run's state for the reservation of each part of the data set.
_RESERVATIONS = {TRAIN: "reservation_id", HOLDOUT: "holdout_reservation_id"}


def ingest(run: RunDirectory, spec: Spec, plan: Plan, key: bytes, budget: Budget) -> None:
    """Reserve the plan's cost for exactly these records; a repeated call reserves once.

    The home's secret `key` enters the fingerprint by which the budget identifies the data.

    Raises:
        DataError: the data are missing, damaged or not what the spec says; nothing was reserved.
        BudgetRefused: the data set's budget does not admit the plan.
        UmbraError: the run's folder cannot be written. The reservation remains: a repeated call
            finds it, and `give_back` settles it.
    """
    # Before Ray or MLflow are started, so that bad data are refused at once.
    started, data = monotonic(), spec.data
    loaded = load_partition(data, TRAIN)
    if len(loaded) != data.records:
        raise DataError(
            f"data.records declares N = {data.records}, the source holds {len(loaded)}"
            f"{' without doubles' if data.drop_doubles else ''}. "
            "The declared number enters the accounting: correct it in the spec."
        )
    records = {TRAIN: loaded}
    if data.holdout is not None:
        records[HOLDOUT] = _holdout(spec, loaded, key)
    for part, each in records.items():
        DatasetIdentity.keep(run, part, each)
    write_json(run.internal / DOUBLES, count_doubles(loaded, records.get(HOLDOUT), key))
    contents = {part: content_of(each, key) for part, each in records.items()}
    # Whoever is asked what the data set is, it is not the spec.
    budget.facts(data.name)
    paying = [TRAIN, *([HOLDOUT] if plan.holdout_components else [])]
    reserved = {_RESERVATIONS[p]: _reserve(run, spec, plan, p, contents, budget) for p in paying}
    for reservation in reserved.values():
        record_head(run, reservation.head)
    run.update(**{name: each.id for name, each in reserved.items()})
    run.finish_stage(INGEST, monotonic() - started)


def describe_doubles(run: RunDirectory, budget: Budget) -> str:
    """Return a sentence on the doubles in a run's public images, empty where there are none."""
    # Of private ones nothing: that there are some is an exact bit about private records.
    found = json.loads((run.internal / DOUBLES).read_text())
    reserved = run.state().reservation_id
    if reserved is None:
        return ""
    may_be = budget.shown(reserved)
    public = {"in the training set": may_be.train, "in the holdout": may_be.holdout}
    public["in both"] = may_be.train and may_be.holdout
    counted = [
        f"{found[where]} {where}" for where, shown in public.items() if shown and found.get(where)
    ]
    if not counted:
        return ""
    return (
        f"records that are equal: {', '.join(counted)} (all counts: internal/{DOUBLES}). "
        "`data.drop_doubles: true` keeps one of each, and trains on none of a public holdout's; "
        "data.records counts what remains"
    )


def give_back(run: RunDirectory, budget: Budget) -> dict[str, Settlement]:
    """Settle everything that was reserved for a run, and return the settlements by part."""
    # Look it up in the ledger: a run that died before it recorded its reservation lacks the id.
    found = {part: budget.reserved(_key(run, part)) for part in (TRAIN, HOLDOUT)}
    return {part: budget.settle(each.id) for part, each in found.items() if each is not None}


def _key(run: RunDirectory, part: str) -> str:
    return run.run_id if part == TRAIN else f"{run.run_id}/{part}"


def _holdout(spec: Spec, train: LabelledRecords, key: bytes) -> LabelledRecords:
    """Load the holdout. Raises DataError where it is paid for and shares a training image."""
    holdout = load_partition(spec.data, HOLDOUT)
    pays = spec.evaluate is not None and spec.evaluate.release is not None
    if pays and shared_records(train, holdout, key):
        raise DataError(
            "data.holdout shares images with the training set, so the two cannot be charged "
            "separately: a record in both would be charged twice. Remove the shared images from "
            "one of them, or leave out evaluate.release."
        )
    return holdout


def _reserve(
    run: RunDirectory,
    spec: Spec,
    plan: Plan,
    part: str,
    contents: Mapping[str, Content],
    budget: Budget,
) -> Reservation:
    train = part == TRAIN
    return budget.reserve(
        run.run_id,
        spec.data.name,
        contents[part],
        partition=part,
        plan=plan.components if train else plan.holdout_components,
        # A seed does not determine the noise of figures on the holdout.
        void=train and plan.void,
        idempotency_key=_key(run, part),
        spec_sha256=spec.sha256(),
        holdout=contents.get(HOLDOUT) if train else None,
    )
