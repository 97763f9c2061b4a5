"""One small run with one fault in it, to its end."""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.audit.ledger import audit_run
from privacy.ledger import Ledger
from tests.pipeline.faults.checks import (
    charged_steps,
    ledger_problems,
    message_problems,
    release_problems,
)
from tests.pipeline.faults.faults import Fault, Injection
from tests.pipeline.faults.small_runs import SPEC, Site, Start

TIMEOUT = 150.0  # seconds for one start: Ray itself waits for a minute here and there
RESUMES = 3
_ORPHAN_SECONDS = 30.0
# Ray ends a driver whose raylet or GCS is gone on the spot: it can say nothing, so its status must.
_ENDS_DRIVER = ("driver", "raylet", "gcs")


@dataclass
class Outcome:
    """What a fault did to a run.

    Attributes:
        fault: what it was.
        happened_after: seconds from the start; None if the run had ended before.
        codes: exit codes of the start with the fault and of every resume.
        stderr: the end of standard error of each start that failed.
        end: the run's last state, or "no run".
        charged: steps of all attempts in the ledger.
        executed: steps of all attempts that were begun.
        orphans_gone_after: seconds from the end of the start with the fault.
        problems: what must not be.
        seconds: that all of it took.
    """

    fault: Fault
    happened_after: float | None = None
    codes: list[int | None] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    status: str = ""
    end: str = "no run"
    charged: int = 0
    executed: int = 0
    orphans_gone_after: float | None = None
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The attributes, for JSON."""
        return asdict(self)


def run_with_fault(site: Site, fault: Fault) -> Outcome:
    """Submit a run, let the fault happen, resume what it left, and check what there is."""
    begun, outcome = time.monotonic(), Outcome(fault)
    site.executed = Counter()
    before = {run.run_id for run in site.home.runs()}
    spec = site.folder / "spec.yaml"
    spec.write_text(SPEC.format(workers=fault.workers))
    start = site.start("submit", str(spec))
    injection = Injection(fault, site, start)
    end = begun + TIMEOUT
    while start.poll() is None and time.monotonic() < end:
        site.read_journal()
        injection.poll()
        time.sleep(0.03)
    site.wait(start, 0.0)
    injection.end()
    outcome.happened_after = injection.happened_after
    _record_end(outcome, site, start)
    made = [run for run in site.home.runs() if run.run_id not in before]
    if made:
        _resume_to_end(outcome, site, made[0])
    outcome.seconds = round(time.monotonic() - begun, 1)
    return outcome


def _record_end(outcome: Outcome, site: Site, start: Start) -> None:
    """How a start ended, and whether it left anything running."""
    driver_killed = outcome.fault.kind in _ENDS_DRIVER and not outcome.codes
    outcome.codes.append(start.code)
    if start.code is None:
        outcome.problems.append(f"no end came within {TIMEOUT:g} s: {start.stderr[-300:]}")
    elif start.code != 0:
        outcome.stderr.append(start.stderr[-4000:])
        outcome.problems += [] if driver_killed else message_problems(start.stderr)
    ended = time.monotonic()
    while left := site.processes():
        if time.monotonic() - ended > _ORPHAN_SECONDS:
            names = sorted(command[:60].decode(errors="replace") for command in left.values())
            outcome.problems.append(f"left running: {names}")
            site.kill_all()
            return
        time.sleep(0.1)
    if outcome.orphans_gone_after is None:
        outcome.orphans_gone_after = round(time.monotonic() - ended, 1)


def _resume_to_end(outcome: Outcome, site: Site, run) -> None:
    outcome.status = _status(outcome, site, run.run_id)
    for _ in range(RESUMES):
        if run.state().status == "done":
            break
        start = site.start("resume", run.run_id, "--yes")
        site.wait(start, TIMEOUT)
        _record_end(outcome, site, start)
    state = run.state()
    outcome.end, outcome.executed = state.status, site.executed.total()
    if state.status == "done":
        outcome.problems += release_problems(run.release)
    else:
        outcome.problems.append(f"after {RESUMES} resumes it is {state.status}: {state.message}")
    if state.reservation_id is not None:
        outcome.charged = charged_steps(site, state.reservation_id)
        outcome.problems += ledger_problems(site, state.reservation_id, site.executed)
    if not audit_run(Ledger.open(site.home.ledger_url), run).ok:
        outcome.problems.append("the audit failed")


def _status(outcome: Outcome, site: Site, run_id: str) -> str:
    """Return what `umbra status` says of the run, which must not be that it is running."""
    start = site.start("status", run_id, "--json")
    if site.wait(start, TIMEOUT) != 0:
        outcome.problems.append(f"its status ended with {start.code}: {start.stderr[-300:]}")
        return ""
    status = json.loads(site.stdout())
    if status["status"] == "running" or not status["advice"]:
        outcome.problems.append(f"its status does not explain it: {status['status']}")
    if status["status"] == "failed" and not status["message"]:
        outcome.problems.append("it failed without a reason")
    return f"{status['status']} {status['message']}".strip()
