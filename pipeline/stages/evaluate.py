"""Evaluate: what the synthetic images are worth against real ones kept out of training.

Figures against private images stay in `internal/`. Against a public reference they are released;
the ceiling needs the training images themselves, so it is released only where those are public.
"""

from pipeline.cluster.evaluation import evaluate
from pipeline.metrics import METRICS, flat, releasable
from pipeline.stages.base import TRACES, Context
from pipeline.tracking.release import Release
from pipeline.tracking.tracker import StageRun
from synth.atomic import write_json


class Evaluate:
    """Leaves `metrics.json` in `release/` or `internal/`, as the reference allows."""

    name = "evaluate"

    def run(self, context: Context, tracked: StageRun) -> None:
        """See `Stage.run`; a spec without a section `evaluate` passes over it."""
        spec, run = context.spec, context.run
        if spec.evaluate is None:
            return
        tasks = 2 * len(spec.evaluate.classifiers) + 1
        with context.progress.stage("evaluate", tasks) as stage:
            results = evaluate(spec, run.release, run.internal / TRACES, stage.advance)
        write_json(run.internal / METRICS, results)
        released = releasable(spec, results)
        if released:
            write_json(run.release / METRICS, released)
            tracked.metrics(Release.evaluation(flat(released), reference="public"))
