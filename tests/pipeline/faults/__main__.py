"""Faults at random instants in small whole runs: `python -m tests.pipeline.faults`.

Prints one line a fault, appends it as JSON to a file so that pieces add up, and ends with 1 if
anything was found that must not be.
"""

import argparse
import json
import random
import signal
import time
from pathlib import Path

from tests.pipeline.faults.faults import KINDS, Fault
from tests.pipeline.faults.run_with_fault import Outcome, run_with_fault
from tests.pipeline.faults.sites import sites


def main() -> int:
    """Run faults until so many have happened or the time is over."""
    options = _options()
    print(f"seed {options.seed}", flush=True)
    # As Ctrl-C, so that nothing of a run is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    dice, end, found = random.Random(options.seed), time.monotonic() + options.seconds, 0
    kinds = [options.kind] if options.kind else KINDS
    with sites(kinds) as places:
        left = options.count
        while left and time.monotonic() < end:
            fault = Fault.draw(dice, list(places))
            outcome = run_with_fault(places[fault.kind], fault)
            left -= outcome.happened_after is not None
            found += len(outcome.problems)
            _report(outcome, options)
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="faults that are to happen")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin none after this time")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"))
    return parser.parse_args()


def _report(outcome: Outcome, options: argparse.Namespace) -> None:
    with options.out.open("a") as file:
        file.write(json.dumps({"seed": options.seed, **outcome.to_dict()}) + "\n")
    fault, when = outcome.fault, outcome.happened_after
    instant = "never, the run had ended" if when is None else f"after {when:.1f} s"
    print(
        f"{fault.kind:8} {fault.phase:10} +{fault.seconds:<6} {instant:26} W={fault.workers} "
        f"exits {outcome.codes} {outcome.end}, {outcome.executed} executed, "
        f"{outcome.charged} charged, {outcome.seconds} s",
        *(f"\n    WRONG: {wrong}" for wrong in outcome.problems),
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
