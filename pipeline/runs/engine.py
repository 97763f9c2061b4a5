"""Submit a run, and execute it stage by stage, from wherever it stopped, on a Ray cluster."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

from pipeline import plan as planning
from pipeline.home import Home
from pipeline.progress import Progress
from pipeline.runs import control, ingest, ledger_access, origin, preflight
from pipeline.runs.dataset_identity import HOLDOUT, TRAIN, require_declared
from pipeline.runs.directory import JOB_VARIABLE, RayJob, RunDirectory, RunState
from pipeline.sources.base import keep_names
from pipeline.spec import Spec, Workers
from privacy.budget import Budget
from privacy.errors import BudgetRefused, DataError, NoLedger, UmbraError
from privacy.keys import key_id
from privacy.ledger import Ledger

if TYPE_CHECKING:
    from pipeline.stages import Context
    from pipeline.tracking.tracker import StageRun, TrackedRun

_POLL_SECONDS = 0.5
_MLFLOW_SECONDS = 10.0  # that a failed run waits for MLflow, to record the failure there


def submit(
    spec: Spec, home: Home, *, embedded: bool = False, workers: Workers | None = None
) -> RunDirectory:
    """Create a run and reserve its budget; `execute` does the rest.

    A refused spec, data set or budget leaves no run behind and spends nothing. Where `embedded`,
    this machine is to execute the run, and must have room for it.

    Raises:
        InvalidRequest: no noise meets the request.
        DataError: the data are missing, damaged or not what the spec says.
        BudgetRefused: the data set has no budget, or not enough of it is left.
        UmbraError: the home cannot be written, the ledger not reached, or there is no room.
    """
    home.ensure()
    budget = _budget_to_read(spec, home)
    declared = budget.odometer(spec.data.name)
    if declared.delta != spec.privacy.delta:
        raise BudgetRefused(
            f"{spec.data.name!r} was declared with δ = {declared.delta:g}, and a data set has one "
            f"δ; the spec asks for δ = {spec.privacy.delta:g}. Set privacy.delta to the declared "
            "one."
        )
    require_declared(spec, budget.facts(spec.data.name))
    # Refuse what the budget refuses before torch is imported and the data are read.
    components = {
        TRAIN: planning.training_components(spec),
        HOLDOUT: planning.holdout_components(spec),
    }
    for part, charged in components.items():
        if charged:
            budget.require_admissible(spec.data.name, charged, part)
    planned = planning.plan(spec, trial=False)
    if embedded:
        from pipeline.cluster import connection

        # Refuse before reserving: a run without room would hold its budget and only wait.
        connection.require_room(_with_workers(spec, workers).resources, connection.this_machine())
    with _names_kept(home):
        preflight.require_what_comes_last(spec, home, embedded=embedded)
    access = ledger_access.LedgerAccess.of(home)
    budget, run = Budget(access.open()), home.new_run(spec)
    try:
        with _names_kept(home):
            ingest.ingest(run, spec, planned, access.key, budget)
    except BaseException:
        if run.state().reservation_id is None:
            # A run that did not record its reservation could neither charge it nor give it back.
            ingest.give_back(run, budget)
            shutil.rmtree(run.path)
        raise
    return run


@contextmanager
def _names_kept(home: Home) -> Iterator[None]:
    """Keep the names of private files that an error is about inside the home."""
    try:
        yield
    except DataError as error:
        keep_names(error, home.path / "internal")
        raise


def _budget_to_read(spec: Spec, home: Home) -> Budget:
    """Return the home's budgets for reading: what is refused makes neither key, ledger nor row."""
    try:
        ledger = Ledger.open(home.ledger_url, witness=home.witness_path)
    except NoLedger:
        name = spec.data.name
        raise BudgetRefused(
            f"{name!r} has no budget yet, for there is no ledger. Declare one: umbra budget "
            f"declare {name} --epsilon E --delta D --private (or --public; --public-holdout where "
            "only the holdout is)"
        ) from None
    access = ledger_access.LedgerAccess.of(home)
    if key_id(access.key) != ledger.key_id:
        # Says which key the ledger was made with.
        access.open()
    return Budget(ledger)


def execute(
    run: RunDirectory,
    home: Home,
    progress: Progress,
    address: str | None = None,
    workers: Workers | None = None,
) -> RunState:
    """Run every stage that is not done yet, and return the final state.

    The state on disk always shows what happened: running, failed with a reason, cancelled, done.

    Args:
        run: a created, failed or cancelled run, or one whose process died.
        home: of the run.
        progress: shown to a person; counts only.
        address: of a Ray cluster; None starts one inside.
        workers: replace the spec's training workers and sampling actors for this start. Nothing
            that is computed depends on them, so the run's spec and its hash stay.

    Raises:
        UmbraError: a stage failed, or the cluster admits anybody.
        InvalidRequest: another process works on the run, or it is done or given up.
        IntegrityBroken: the ledger lacks rows that the run saw: it was rolled back.
    """
    with run.lock():
        control.require_unfinished(run)
        spec, access = run.spec(), ledger_access.LedgerAccess.of(home)
        planned = planning.plan(spec, trial=False)
        if run.state().reservation_id is not None:
            # Where the run's ledger is missing, `access.open` would create another one.
            ledger_access.read_budget(home).ledger.close()
        budget = Budget(access.open())
        with _sigterm_interrupts(), _outcome_recorded(run):
            run.begin()
            run.update(job=_current_job(run), waiting="")
            ledger_access.verify_ledger_ancestry(run, budget.ledger)
            if not run.state().is_done(ingest.INGEST):
                ingest.ingest(run, spec, planned, access.key, budget)
            reservation = origin.require_reservation(run, spec, budget)
            if not run.state().is_done("train"):
                # Before the cluster starts, and before a step more is charged.
                origin.require_checkpoint(run, budget, reservation)
            open_mlflow = partial(_open_in_mlflow, run, home, spec, planned, budget)
            spec = _with_workers(run.evaluated_spec(), workers)
            with _environment(run, spec, address, open_mlflow) as tracked:
                # Ray and torch take seconds to import: they are imported where they are needed.
                from pipeline import stages
                from pipeline.cluster.budget_actor import budget_manager

                # Before MLflow is waited for: the manager's process starts meanwhile.
                manager = budget_manager(access)
                context = stages.Context(
                    home, run, spec, planned, reservation, budget, manager, tracked(), progress
                )
                for stage in stages.STAGES:
                    if not run.state().is_done(stage.name):
                        with _recorded(context, stage.name) as stage_run:
                            stage.run(context, stage_run)
                run.update(status="done", process=None)
                context.tracked.finish()
    return run.state()


@contextmanager
def _recorded(context: "Context", stage: str) -> "Iterator[StageRun]":
    """Record a stage in state, MLflow and, when it is done, with the ledger's head."""
    run, tracked = context.run, context.tracked
    run.update(stage=stage)
    started = monotonic()
    with tracked.stage(stage) as stage_run:
        yield stage_run
    run.finish_stage(stage, monotonic() - started)
    head = context.budget.ledger.head()
    ledger_access.record_head(run, head)
    tracked.ledger_head(str(head))


def _with_workers(spec: Spec, workers: Workers | None) -> Spec:
    if workers is None:
        return spec
    return spec.model_copy(update={"resources": spec.resources.with_workers(workers)})


def _current_job(run: RunDirectory) -> RayJob | None:
    """Return the job that this process is, if the run was submitted as one."""
    job = run.state().job
    return job if job and job.submission_id == os.environ.get(JOB_VARIABLE) else None


@contextmanager
def _environment(
    run: RunDirectory, spec: Spec, address: str | None, open_mlflow: "Callable[[], TrackedRun]"
) -> "Iterator[Callable[[], TrackedRun]]":
    """Start heartbeat, disk watch, MLflow and the cluster; yield what waits for MLflow's run."""
    from pipeline.cluster.calls import abort_when, disk_write_error, report_waiting
    from pipeline.cluster.connection import cluster, require_room, require_token

    if address is not None:
        require_token(address)
    with ExitStack() as stack:
        stack.enter_context(control.heartbeat(run))
        stack.enter_context(abort_when(partial(disk_write_error, run.internal)))
        tracked_run = stack.enter_context(_opened_in_background(open_mlflow))
        resources = stack.enter_context(cluster(address, spec.resources.object_store_gib))
        if address is not None:
            stack.enter_context(report_waiting(lambda reason: run.update(waiting=reason)))
        elif not run.state().is_done("train"):
            require_room(spec.resources, resources)
        yield tracked_run


@contextmanager
def _opened_in_background(
    open_mlflow: "Callable[[], TrackedRun]",
) -> "Iterator[Callable[[], TrackedRun]]":
    """Open the run in MLflow while the cluster starts, as both take seconds.

    Yield what waits for it, unless a condition aborts that. If the block fails, the run in MLflow
    ends as failed or killed.
    """
    from pipeline.cluster import calls

    opening: futures.Future[TrackedRun] = futures.Future()

    def work() -> None:
        try:
            opening.set_result(open_mlflow())
        except BaseException as error:
            opening.set_exception(error)

    # Not an executor, which would join its thread: a server out of reach blocks it for minutes.
    Thread(target=work, daemon=True).start()

    def opened() -> "TrackedRun":
        while not opening.done():
            futures.wait([opening], timeout=_POLL_SECONDS)
            calls.check_abort_conditions()
        return opening.result()

    try:
        yield opened
    except BaseException as error:
        from pipeline.tracking.tracker import Ended

        with suppress(TimeoutError):
            if opening.exception(_MLFLOW_SECONDS) is None:
                opening.result().finish(Ended.by(error))
        raise


def _open_in_mlflow(
    run: RunDirectory, home: Home, spec: Spec, planned: planning.Plan, budget: Budget
) -> "TrackedRun":
    from pipeline.tracking.release import Release
    from pipeline.tracking.tracker import RunIdentity, Tracker

    tracker = Tracker(home.mlflow_uri, home.artifacts)
    known = run.state().mlflow_run_id or tracker.find(run.run_id)
    if known:
        tracked = tracker.reopen(known, run.release, void=planned.void)
    else:
        identity = RunIdentity(
            run_id=run.run_id,
            spec_sha256=spec.sha256(),
            ledger_id=budget.ledger.ledger_id,
            ledger_head=str(budget.ledger.head()),
            void=planned.void,
            gradient_engine=planned.cost.gradient_engine,
        )
        tracked = tracker.start(spec.name, identity, run.release)
    run.update(mlflow_experiment_id=tracker.experiment_id, mlflow_run_id=tracked.id)
    tracked.params(spec)
    tracked.metrics(Release.plan(planned.costs()))
    tracked.log_dataset(spec.data.name)
    return tracked


@contextmanager
def _outcome_recorded(run: RunDirectory) -> Iterator[None]:
    """Record in the run's state how the block failed; only messages meant for users."""
    try:
        yield
    except UmbraError as error:
        keep_names(error, run.internal)
        run.update(status="failed", process=None, message=str(error))
        raise
    except KeyboardInterrupt:
        run.update(status="cancelled", process=None, message=control.CANCELLED)
        raise
    except BaseException as error:
        # The text of an unexpected error may hold private values: record its type alone.
        run.update(status="failed", process=None, message=type(error).__name__)
        raise


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that Ray is shut down with it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
