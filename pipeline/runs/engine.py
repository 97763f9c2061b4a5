"""The engine: executes a run stage by stage, from wherever it stands, on a Ray cluster."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread
from time import monotonic

from pipeline.cluster.authentication import require_token
from pipeline.cluster.calls import abort_when, disk_write_error
from pipeline.cluster.connection import cluster, require_room, this_machine
from pipeline.home import Home
from pipeline.plan.plan import Plan, plan
from pipeline.progress import Progress
from pipeline.runs.ancestry import record_head, verify_ledger_ancestry
from pipeline.runs.cancel import CANCELLED
from pipeline.runs.directory import RunDirectory
from pipeline.runs.ingest import INGEST, give_back, ingest
from pipeline.runs.ledger_access import LedgerAccess
from pipeline.runs.state import JOB_VARIABLE, RayJob, RunState
from pipeline.runs.status import heartbeat
from pipeline.spec import Spec
from pipeline.spec.sections import Workers
from pipeline.tracking.release import Release
from pipeline.tracking.tracker import Ended, RunIdentity, TrackedRun, Tracker
from privacy.budget import Budget
from privacy.errors import BudgetRefused, InvalidRequest, UmbraError
from privacy.ledger import Ledger

_TRAIN_STAGE = "train"
_OPENING_SECONDS = 10.0  # that a run which has failed waits for MLflow, to tell it so


def submit(
    spec: Spec, home: Home, *, embedded: bool = False, workers: Workers | None = None
) -> RunDirectory:
    """Make a run and reserve its budget; `execute` does the rest.

    A refused spec, data set or budget leaves no run behind and spends nothing.

    Args:
        spec: what is asked for.
        home: where the ledger and the key are.
        embedded: whether this machine is to execute it, so that it must have room.
        workers: as for `execute`.

    Raises:
        InvalidRequest: no noise meets the request.
        DataError: the data are missing, damaged or not what the spec says.
        BudgetRefused: the data set has no budget, or not enough of it is left.
        UmbraError: the home cannot be written, the ledger not reached, or there is no room.
    """
    planned = plan(spec, trial=False)
    if embedded:
        # Once reserved, a budget is bound to a run that can only wait for a larger machine.
        require_room(_for_this_start(spec, workers).resources, this_machine())
    home.ensure()
    access = LedgerAccess.of(home)
    budget = Budget(access.open())
    declared = budget.odometer(spec.data.name)
    if declared.delta != spec.privacy.delta:
        raise BudgetRefused(
            f"{spec.data.name!r} was declared with δ = {declared.delta:g}, and a data set has one "
            f"δ; the spec asks for δ = {spec.privacy.delta:g}. Set privacy.delta to the declared "
            "one."
        )
    run = home.new_run(spec)
    try:
        ingest(run, spec, planned, access.key, budget)
    except BaseException:
        if run.state().reservation_id is None:
            # A run that cannot remember what it reserved can neither charge it nor give it back.
            give_back(run, budget)
            shutil.rmtree(run.path)
        raise
    return run


def execute(
    run: RunDirectory,
    home: Home,
    progress: Progress,
    address: str | None = None,
    workers: Workers | None = None,
) -> RunState:
    """Run every stage that is not done yet, and return the final state.

    The state on disk always tells what happened: running, failed with a reason, cancelled, done.

    Args:
        run: a created, failed or cancelled run, or one whose process died.
        home: where the ledger, the key and MLflow are.
        progress: shown to a person; counts only.
        address: of a Ray cluster; None starts one inside.
        workers: replace the spec's training workers and sampling actors for this start. Nothing
            that is computed depends on them, so the run's spec and its hash stay.

    Raises:
        UmbraError: a stage failed, in words for a person, or the cluster lets anybody in.
        NoLedger: the run has reserved, and its ledger is not here.
        InvalidRequest: another process works on the run, or it is done already.
        IntegrityBroken: the ledger no longer holds what the run saw of it: it was rolled back.
    """
    with run.lock():
        if run.state().status == "done":
            raise InvalidRequest(f"run {run.run_id} is done: there is nothing left to do")
        spec = run.spec()
        planned = plan(spec, trial=False)
        access = LedgerAccess.of(home)
        if run.state().reservation_id is not None:
            # On a machine that does not see the run's ledger, to open one would begin another.
            Ledger.open(home.ledger_url).close()
        budget = Budget(access.open())
        with _terminable(), _told(run):
            run.begin()
            run.update(job=_own_job(run), waiting="")
            verify_ledger_ancestry(run, budget.ledger)
            if not run.state().is_done(INGEST):
                ingest(run, spec, planned, access.key, budget)
            resources = _for_this_start(spec, workers).resources
            if address is not None:
                require_token(address)
            with (
                heartbeat(run),
                abort_when(partial(disk_write_error, run.internal)),
                _tracked(partial(_track, run, home, spec, planned, budget)) as tracked,
                cluster(address, resources.object_store_gib) as there,
            ):
                if address is None and not run.state().is_done(_TRAIN_STAGE):
                    require_room(resources, there)
                with _waiting_told(run, address):
                    _run_stages(run, home, spec, planned, access, tracked, progress, workers)
    return run.state()


def _own_job(run: RunDirectory) -> RayJob | None:
    """Return the job that this process is, if the run was handed to it."""
    job = run.state().job
    return job if job and job.submission_id == os.environ.get(JOB_VARIABLE) else None


def _for_this_start(spec: Spec, workers: Workers | None) -> Spec:
    if workers is None:
        return spec
    return spec.model_copy(update={"resources": spec.resources.with_workers(workers)})


def _run_stages(
    run: RunDirectory,
    home: Home,
    spec: Spec,
    planned: Plan,
    access: LedgerAccess,
    tracked_run: Callable[[], TrackedRun],
    progress: Progress,
    workers: Workers | None,
) -> None:
    # Ray and torch take seconds to import: `umbra status` must not wait for them.
    from pipeline.cluster.budget_actor import budget_manager
    from pipeline.stages import STAGES, Context

    manager = budget_manager(access)  # a process, which begins to start here
    budget, tracked = Budget(access.open()), tracked_run()
    context = Context(
        home=home,
        run=run,
        spec=_for_this_start(spec, workers),
        plan=planned,
        budget=budget,
        manager=manager,
        tracked=tracked,
        progress=progress,
    )
    for stage in STAGES:
        if run.state().is_done(stage.name):
            continue
        run.update(stage=stage.name)
        begun = monotonic()
        with tracked.stage(stage.name) as stage_run:
            stage.run(context, stage_run)
        run.finish_stage(stage.name, monotonic() - begun)
        head = budget.ledger.head()
        record_head(run, head)
        tracked.ledger_head(str(head))
    run.update(status="done", process=None)
    tracked.finish(Ended.FINISHED)


@contextmanager
def _tracked(track: Callable[[], TrackedRun]) -> Iterator[Callable[[], TrackedRun]]:
    """Open the run in MLflow beside what the block begins with, as both take seconds.

    Yields:
        What waits for it and returns it, or raises what opening it raised. If the block fails, the
        run in MLflow ends so.
    """
    opening: Future[TrackedRun] = Future()

    def work() -> None:
        try:
            opening.set_result(track())
        except BaseException as error:
            opening.set_exception(error)

    # No executor: it would wait for its thread, and a server out of reach is asked for minutes.
    Thread(target=work, daemon=True).start()
    try:
        yield opening.result
    except BaseException as error:
        with suppress(TimeoutError):
            if opening.exception(_OPENING_SECONDS) is None:
                opening.result().finish(Ended.by(error))
        raise


def _track(run: RunDirectory, home: Home, spec: Spec, planned: Plan, budget: Budget) -> TrackedRun:
    tracker = Tracker(home.mlflow_uri, home.artifacts)
    known = run.state().mlflow_run_id or tracker.find(run.run_id)
    if known:
        tracked = tracker.reopen(known, run.release)
    else:
        identity = RunIdentity(
            run_id=run.run_id,
            spec_sha256=spec.sha256(),
            ledger_id=budget.ledger.ledger_id,
            ledger_head=str(budget.ledger.head()),
            void=spec.privacy.seed is not None,
            gradient_engine=planned.cost.gradient_engine,
        )
        tracked = tracker.start(spec.name, identity, run.release)
    run.update(mlflow_experiment_id=tracker.experiment_id, mlflow_run_id=tracked.id)
    tracked.params(spec)
    tracked.metrics(Release.plan(planned.costs()))
    tracked.log_dataset(spec.data.name)
    return tracked


@contextmanager
def _waiting_told(run: RunDirectory, address: str | None) -> Iterator[None]:
    """Note what the run waits for; an embedded cluster is its own, so there it never waits."""
    if address is None:
        yield
        return
    from pipeline.cluster.connection import report_waiting

    with report_waiting(lambda words: run.update(waiting=words)):
        yield


@contextmanager
def _told(run: RunDirectory) -> Iterator[None]:
    """Write how the block ended into the run's state; texts for users only."""
    try:
        yield
    except UmbraError as error:
        run.update(status="failed", process=None, message=str(error))
        raise
    except KeyboardInterrupt:
        run.update(status="cancelled", process=None, message=CANCELLED)
        raise
    except BaseException as error:
        # The text of an unforeseen error may hold private values: only its type is told.
        run.update(status="failed", process=None, message=type(error).__name__)
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that Ray is taken down with it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
