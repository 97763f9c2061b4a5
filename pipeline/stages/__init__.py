"""The stages of a run, in order; each is done once and passed over when a run is resumed."""

from pipeline.stages.base import Context, Stage
from pipeline.stages.evaluate import Evaluate
from pipeline.stages.report import Report
from pipeline.stages.synthesize import Synthesize
from pipeline.stages.train import Train

STAGES: tuple[Stage, ...] = (Train(), Synthesize(), Evaluate(), Report())

__all__ = ["STAGES", "Context", "Stage"]
