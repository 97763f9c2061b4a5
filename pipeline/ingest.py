"""Ingest: the private set is opened, held against the spec, and its budget reserved.

The first thing that happens to a run, before Ray or MLflow are started, so that bad data or a small
budget are answered at once and nothing is left behind.
"""

from time import monotonic

from pipeline.heads import record_head
from pipeline.plan import Plan
from pipeline.run_directory import RunDirectory
from pipeline.spec import Spec
from privacy.budget import Budget
from privacy.errors import DataError
from privacy.fingerprint import fingerprint
from privacy.keys import load_or_create_key
from synth.atomic import write_bytes

INGEST = "ingest"
RUN_KEY = "run.key"
CONTENT = "content"


def ingest(run: RunDirectory, spec: Spec, plan: Plan, key: bytes, budget: Budget) -> None:
    """Reserve what the plan costs for exactly these records; a repeated call reserves once.

    Args:
        run: the run's folder.
        spec: what is asked for.
        plan: what it costs.
        key: the home's secret key, for the fingerprint that the budget knows the data by.
        budget: where to reserve.

    Raises:
        DataError: the data are missing, damaged or not what the spec says; nothing was reserved.
        BudgetRefused: the data set's budget does not admit the plan.
        UmbraError: the run's folder cannot be written; what was reserved was given back.
    """
    begun = monotonic()
    data = spec.data
    loaded = data.source.load(data.size, data.channels, data.classes)
    if len(loaded) != data.records:
        raise DataError(
            f"data.records declares N = {data.records}, the source holds {len(loaded)}. "
            "The declared number enters the accounting: correct it in the spec."
        )
    # Workers open the source again; under the run's own key they can tell whether it is still the
    # same without being trusted with the home's key.
    run_key = load_or_create_key(run.internal / RUN_KEY)
    content = fingerprint(loaded.images, loaded.labels, run_key)
    write_bytes(run.internal / CONTENT, content.encode())
    reservation = budget.reserve(
        run.run_id,
        data.name,
        fingerprint(loaded.images, loaded.labels, key),
        data.records,
        spec.privacy.unit,
        records_per_unit=spec.privacy.records_per_unit,
        plan=plan.components,
        void=plan.void,
        idempotency_key=run.run_id,
        spec_sha256=spec.sha256(),
    )
    try:
        record_head(run, reservation.head)
        run.update(reservation_id=reservation.id)
    except BaseException:
        # A run that cannot remember what it reserved can neither charge it nor give it back.
        budget.settle(reservation.id)
        raise
    run.finish_stage(INGEST, monotonic() - begun)
