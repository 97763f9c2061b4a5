"""What a run needs last is checked first: before a budget is reserved for it."""

from typing import Any

from pipeline.home import Home
from pipeline.runs.dataset_identity import HOLDOUT, load_partition
from pipeline.runs.directory import RunDirectory
from pipeline.sources.base import keep_names
from pipeline.spec import Evaluate, Spec
from privacy.errors import DataError, InvalidRequest
from synth.storage import write_bytes


def require_what_comes_last(spec: Spec, home: Home, *, embedded: bool) -> None:
    """Check the evaluation's images and features, MLflow, and where embedded Ray's folder.

    Raises:
        DataError: the holdout is missing, damaged, not what the spec says, or too small.
        InvalidRequest: the features cannot be computed.
        UmbraError: MLflow cannot be reached, or Ray has no folder for its sockets.
    """
    from pipeline.tracking.tracker import require_reachable

    require_evaluable(spec)
    require_reachable(home.mlflow_uri)
    if embedded:
        from pipeline.cluster.connection import socket_folder

        socket_folder()


def require_evaluable(spec: Spec) -> None:
    """Load what the section `evaluate` needs, if there is one; raises as the above."""
    from eval.settings import fewest_compared

    evaluate = spec.evaluate
    if evaluate is None:
        return
    found, fewest = len(load_partition(spec.data, HOLDOUT)), fewest_compared(evaluate.neighbours)
    if found < fewest:
        raise DataError(
            f"data.holdout holds {found} images; at least {fewest} were expected for "
            f"evaluate.neighbours = {evaluate.neighbours}: use more images or fewer neighbours"
        )
    feature_extractor(evaluate, spec.data.channels)


def feature_extractor(evaluate: Evaluate, channels: int) -> Any:
    """Return the extractor that a section `evaluate` names.

    Raises:
        InvalidRequest: its file is missing or is no such network.
    """
    from eval.features import extractor

    path = None if evaluate.features == "builtin" else evaluate.features
    try:
        return extractor("gabor" if path is None else "inception", channels, path)
    except ValueError as error:
        raise InvalidRequest(f"evaluate.features: {error}") from error


def correct_evaluation(run: RunDirectory, other: Spec) -> None:
    """Have a run evaluated as `other` says, whose images are made and whose evaluation failed.

    Raises:
        InvalidRequest: another process works on the run, the run stands elsewhere, or `other`
            differs in more than its evaluation.
        DataError: what it names cannot be evaluated with.
    """
    # A run that goes on meanwhile would be evaluated as neither spec says.
    with run.lock():
        _correct_evaluation(run, other)


def _correct_evaluation(run: RunDirectory, other: Spec) -> None:
    state, spec = run.state(), run.spec()
    if not state.is_done("synthesize") or state.is_done("evaluate"):
        raise InvalidRequest(
            f"run {run.run_id} is {state.status}: its evaluation can be corrected once its images "
            "are made, until it is done"
        )
    merged = spec.corrected(other)
    if merged.canonical_json() != other.canonical_json():
        ours, theirs = spec.model_dump(), other.model_dump()
        differing = [name for name in ours if ours[name] != theirs[name] and name != "evaluate"]
        raise InvalidRequest(
            f"the spec differs from that of run {run.run_id} in more than its evaluation: only the "
            "section evaluate, but for what is released, and data.holdout.source may be corrected "
            f"(it differs in: {', '.join(differing) or 'evaluate'})"
        )
    try:
        require_evaluable(merged)
    except DataError as error:
        keep_names(error, run.internal)
        raise
    write_bytes(run.evaluation_path, merged.to_yaml().encode())
