"""Export of a finished run: a folder that may be shared, and a row in the ledger that says so."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from pipeline.metrics import METRICS, flat
from pipeline.promise import promise
from pipeline.run_directory import RunDirectory
from pipeline.spec import Spec
from privacy.budget import Budget
from privacy.errors import InvalidRequest
from synth.export import CardFacts, Exported, exporter

_NEEDED = "synthesize"


def export_run(
    run: RunDirectory, budget: Budget, target: Path, form: str, *, allow_void: bool = False
) -> Exported:
    """Export a run's synthetic images to the new folder `target` and record it in the ledger.

    A ledger that refuses leaves no export behind.

    Raises:
        InvalidRequest: the run has no images yet, the format is unknown, the target is not empty,
            or the run is void and that was not allowed.
        IntegrityBroken: the run's images are not what their manifest says.
        BudgetRefused: the ledger has no charge that covers the images.
    """
    export = exporter(form)
    state, spec = run.state(), run.spec()
    if not state.is_done(_NEEDED) or state.reservation_id is None:
        raise InvalidRequest(
            f"run {run.run_id} is {state.status} and has no finished images to export. Wait for "
            f"it, or go on with `umbra resume {run.run_id}`."
        )
    said = promise(budget, state.reservation_id)
    exported = export(run.release, target, _card(run, spec), said, allow_void=allow_void)
    try:
        budget.record_export(
            state.reservation_id,
            exported.manifest_sha256,
            f"{form} export",
            void_allowed=allow_void,
        )
    except BaseException:
        shutil.rmtree(target)
        raise
    return exported


def _card(run: RunDirectory, spec: Spec) -> CardFacts:
    synthesize = spec.synthesize
    return CardFacts(
        name=spec.name,
        license="other",
        description=(
            f"Synthetic images of {len(spec.data.classes)} classes, {spec.data.size}×"
            f"{spec.data.size}, made under differential privacy. No image is a real one."
        ),
        source=spec.data.name,
        method=(
            f"DPDM: a {spec.model.config.upper()} diffusion model trained by DP-SGD with noise "
            f"multiplicity K = {spec.train.views}, sampled by {synthesize.sampler} in "
            f"{synthesize.steps} steps with guidance {synthesize.guidance:g}"
        ),
        version=version("umbra-synth"),
        measures=_measures(run),
    )


def _measures(run: RunDirectory) -> tuple[tuple[str, str], ...]:
    """Return what was measured against public images, if anything."""
    path = run.release / METRICS
    if not path.exists():
        return ()
    metrics = flat(json.loads(path.read_bytes()))
    return tuple((name, f"{value:.4f}") for name, value in metrics.items() if ".class." not in name)
