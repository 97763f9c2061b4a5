"""One small run with one fault in it, to its end."""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.pipeline.faults.checks import (
    charged_steps,
    wrong_in_ledger,
    wrong_in_release,
    wrong_words,
)
from tests.pipeline.faults.faults import Fault, Injection
from tests.pipeline.faults.small_runs import SPEC, Site, Start

PATIENCE = 150.0  # seconds for one start: Ray itself waits for a minute here and there
RESUMES = 3
_ORPHANS_SECONDS = 30.0
# Ray ends a driver whose raylet or GCS is gone on the spot: it can say nothing, so its status must.
_TAKES_DRIVER = ("driver", "raylet", "gcs")


@dataclass
class Outcome:
    """What a fault did to a run.

    Attributes:
        fault: what it was.
        happened_after: seconds from the start; None if the run had ended before.
        codes: exit codes, of the start that it befell and of every resume.
        said: last words of each of those that failed.
        end: the run's last state, or "no run".
        charged: steps of all attempts in the ledger.
        executed: steps of all attempts that were begun.
        orphans_gone_after: seconds from the end of the stricken start.
        wrong: what must not be.
        seconds: that all of it took.
    """

    fault: Fault
    happened_after: float | None = None
    codes: list[int | None] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    status: str = ""
    end: str = "no run"
    charged: int = 0
    executed: int = 0
    orphans_gone_after: float | None = None
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The attributes, for JSON."""
        return asdict(self)


def ride(site: Site, fault: Fault) -> Outcome:
    """Submit a run, let the fault happen, resume what it left, and check what there is."""
    begun, outcome = time.monotonic(), Outcome(fault)
    site.executed = Counter()
    before = {run.run_id for run in site.home.runs()}
    spec = site.folder / "spec.yaml"
    spec.write_text(SPEC.format(workers=fault.workers))
    start = site.start("submit", str(spec))
    injection = Injection(fault, site, start)
    end = begun + PATIENCE
    while start.poll() is None and time.monotonic() < end:
        site.read_journal()
        injection.poll()
        time.sleep(0.03)
    site.wait(start, 0.0)
    injection.end()
    outcome.happened_after = injection.happened_after
    _take_note(outcome, site, start)
    made = [run for run in site.home.runs() if run.run_id not in before]
    if made:
        _bring_to_its_end(outcome, site, made[0])
    outcome.seconds = round(time.monotonic() - begun, 1)
    return outcome


def _take_note(outcome: Outcome, site: Site, start: Start) -> None:
    """How a start ended, and whether it left anything running."""
    silenced = outcome.fault.kind in _TAKES_DRIVER and not outcome.codes
    outcome.codes.append(start.code)
    if start.code is None:
        outcome.wrong.append(f"no end came within {PATIENCE:g} s: {start.said[-300:]}")
    elif start.code != 0:
        outcome.said.append(start.said[-4000:])
        outcome.wrong += [] if silenced else wrong_words(start.said)
    ended = time.monotonic()
    while left := site.processes():
        if time.monotonic() - ended > _ORPHANS_SECONDS:
            names = sorted(command[:60].decode(errors="replace") for command in left.values())
            outcome.wrong.append(f"left running: {names}")
            site.kill_all()
            return
        time.sleep(0.1)
    if outcome.orphans_gone_after is None:
        outcome.orphans_gone_after = round(time.monotonic() - ended, 1)


def _bring_to_its_end(outcome: Outcome, site: Site, run) -> None:
    outcome.status = _status(outcome, site, run.run_id)
    for _ in range(RESUMES):
        if run.state().status == "done":
            break
        start = site.start("resume", run.run_id)
        site.wait(start, PATIENCE)
        _take_note(outcome, site, start)
    state = run.state()
    outcome.end, outcome.executed = state.status, site.executed.total()
    if state.status == "done":
        outcome.wrong += wrong_in_release(run.release)
    else:
        outcome.wrong.append(f"after {RESUMES} resumes it is {state.status}: {state.message}")
    if state.reservation_id is not None:
        outcome.charged = charged_steps(site, state.reservation_id)
        outcome.wrong += wrong_in_ledger(site, state.reservation_id, site.executed)
    audit = site.start("audit", run.run_id)
    if site.wait(audit, PATIENCE) != 0:
        outcome.wrong.append(f"the audit ended with {audit.code}: {audit.said[-300:]}")


def _status(outcome: Outcome, site: Site, run_id: str) -> str:
    """What `umbra status` says of the run that was stricken; it must not think that it runs."""
    start = site.start("status", run_id, "--json")
    if site.wait(start, PATIENCE) != 0:
        outcome.wrong.append(f"its status ended with {start.code}: {start.said[-300:]}")
        return ""
    told = json.loads(site.told())
    if told["status"] == "running" or not told["advice"]:
        outcome.wrong.append(f"its status does not explain it: {told['status']}")
    if told["status"] == "failed" and not told["message"]:
        outcome.wrong.append("it failed without a reason")
    return f"{told['status']} {told['message']}".strip()
