"""Export a finished run to a folder that may be shared, and record that in the ledger."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from pipeline.metrics import flat, paid_metrics, released
from pipeline.plan import build_method
from pipeline.runs import ledger_access
from pipeline.runs.directory import RunDirectory
from pipeline.runs.origin import require_reservation, require_shards
from pipeline.spec import Spec
from privacy.accounting.guarantee import group
from privacy.budget import Budget
from privacy.durable import new_folder
from privacy.errors import InvalidRequest
from synth.export.documents import CardFacts, checked_statement
from synth.export.formats import Exported, export_dataset, require_format
from synth.samplers import DIRECT


def export_run(
    run: RunDirectory, budget: Budget, target: Path, form: str, *, allow_void: bool = False
) -> Exported:
    """Export a run's synthetic images to the new folder `target` and record it in the ledger.

    Raises:
        InvalidRequest: the run has no images yet, the format is unknown, the target is not empty,
            or the run is void and `allow_void` is false.
        IntegrityBroken: the run's images do not match their manifest.
        BudgetRefused: the ledger has no charge that covers the images.
    """
    # Before anything is made, the target's missing parents included.
    require_format(form)
    state, spec = run.state(), run.spec()
    if not state.is_done("synthesize") or state.reservation_id is None:
        raise InvalidRequest(
            f"run {run.run_id} is {state.status} and has no finished images to export. Wait for "
            f"it, or go on with `umbra resume {run.run_id}`."
        )
    budget.ledger.require_sound()
    reservation = require_reservation(run, spec, budget)
    require_shards(run, budget, reservation)
    said = ledger_access.privacy_statement(budget, reservation.id)
    checked_statement(said, allow_void)
    if steps := ledger_access.training_steps(run, budget):
        said["steps"] = asdict(steps)
    card = _card(run, spec, budget, said["void"], _disclosure(run, budget))
    # The ledger's row is durable before the folder gets its name: no export exists unrecorded.
    with new_folder(target) as folder:
        made = export_dataset(form, run.release, folder, card, said, allow_void=allow_void)
        head = budget.record_export(
            state.reservation_id,
            made.manifest_sha256,
            f"{form} export",
            void_allowed=allow_void,
        )
        if state.holdout_reservation_id is not None and paid_metrics(run) is not None:
            head = budget.record_export(
                state.holdout_reservation_id, made.manifest_sha256, f"figures on the {form} card"
            )
        ledger_access.record_head(run, head)
    return Exported(target, made.manifest_sha256)


def _card(run: RunDirectory, spec: Spec, budget: Budget, void: bool, disclosure: str) -> CardFacts:
    made = "under differential privacy" if not void else "by a run that guarantees no privacy"
    return CardFacts(
        name=spec.name,
        license="other",
        description=(
            f"Synthetic images of {len(spec.data.classes)} classes, {spec.data.size}×"
            f"{spec.data.size}, made {made}."
        ),
        source=spec.data.name,
        method=f"{build_method(spec).describe()}, {_sampling(spec)}",
        version=version("umbra-synth"),
        measures=_measures(run, budget),
        disclosure=disclosure,
    )


def _disclosure(run: RunDirectory, budget: Budget) -> str:
    """Return what figures that were paid for disclose, alone and together with the images."""
    state, paid = run.state(), paid_metrics(run)
    if paid is None or state.reservation_id is None or state.holdout_reservation_id is None:
        return ""
    said = (
        f"The noisy figures on private images cost ε = {paid.epsilon} at δ = 0 for each of the "
        f"{paid.records} records of the holdout, none of which is in the training set."
    )
    parts = [budget.reservation(r) for r in (state.reservation_id, state.holdout_reservation_id)]
    unit, k = parts[0].unit, parts[0].records_per_unit
    if k == 1 or parts[0].void:
        return said
    # However the k records are spread over the two sets, all of both is at least as much.
    charged = [
        each for part in parts for each in ledger_access.charged_mechanisms(budget, part).values()
    ]
    both = group(charged, budget.odometer(parts[0].dataset).delta, k)
    return (
        f"{said} Up to {k} records of one {unit} may be in the two sets: who may add or remove all "
        f"of them learns from the images and the figures together no more than ε = {both.epsilon} "
        f"allows, at δ = {both.delta} ({both.method})."
    )


def _sampling(spec: Spec) -> str:
    synthesize = spec.synthesize
    if synthesize.sampler == DIRECT:
        return "drawn directly"
    steps, w = synthesize.steps, synthesize.guidance
    return f"sampled by {synthesize.sampler} in {steps} steps with guidance {w:g}"


def _measures(run: RunDirectory, budget: Budget) -> tuple[tuple[str, str], ...]:
    """Return what was measured against public images, or was paid for."""
    results = released(run, budget)
    metrics = flat(results) if results else {}
    measures = [(n, f"{value:.4f}") for n, value in metrics.items() if ".class." not in n]
    paid = paid_metrics(run)
    if paid is not None:
        measures += [
            (
                f"{name}.accuracy (private holdout, noisy, ε = {paid.epsilon} of its own)",
                f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f} at {paid.confidence:.0%})",
            )
            for name, found in paid.classifiers.items()
        ]
    return tuple(measures)
