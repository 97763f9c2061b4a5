"""The stages of a run, in order; a resumed run skips those that are done."""

from pipeline.stages.base import Context, Stage
from pipeline.stages.evaluate import Evaluate, Report
from pipeline.stages.synthesize import Synthesize
from pipeline.stages.train import Train

STAGES: tuple[Stage, ...] = (Train(), Synthesize(), Evaluate(), Report())

__all__ = ["STAGES", "Context", "Stage"]
