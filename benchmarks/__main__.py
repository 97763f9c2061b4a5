"""Ratios against peers on this machine: `python -m benchmarks` from the repository's root."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from .cases import FULL, QUICK, Section, sections
from .machine import busy, describe, load
from .plot import draw
from .worker import set_up

_KINDS = ("sections", "rates", "orchestration", "memory", "curves")


def main() -> None:
    """Print the table of each section, and write all of them as JSON and as a picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five minutes, wider spread")
    parser.add_argument(
        "--only",
        metavar="REGEX",
        type=re.compile,
        default=re.compile(""),
        help="measure the sections whose title matches; --list shows them",
    )
    parser.add_argument("--list", action="store_true", help="print the titles and measure nothing")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench.json"), help="default: %(default)s"
    )
    arguments = parser.parse_args()
    set_up()

    with sections(QUICK if arguments.quick else FULL) as every:
        chosen = [section for section in every if arguments.only.search(section.title)]
        if arguments.list:
            print(*(section.title for section in chosen), sep="\n")
            return
        if not chosen:
            parser.error("no section's title matches; --list shows them")
        _measure(chosen, arguments.quick, arguments.json)


def _measure(chosen: Sequence[Section], quick: bool, target: Path) -> None:
    console, machine, start = Console(width=110), describe(), monotonic()
    _introduce(console, machine)
    report: dict[str, Any] = {"machine": machine, "quick": quick, "seconds": {}}
    report |= {kind: [] for kind in _KINDS}
    for section in chosen:
        begun = monotonic()
        found = section.measure()
        report[section.kind] += [one.to_dict() for one in found]
        report["seconds"][section.title] = round(monotonic() - begun, 1)
        console.print(section.show(found), highlight=False)
    report["load after"] = load()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    picture = target.with_suffix(".png")
    draw(report, picture)
    seconds = f"{monotonic() - start:.0f} s"
    console.print(f"{seconds}; written to {target} and {picture}", highlight=False)


def _introduce(console: Console, machine: Mapping[str, Any]) -> None:
    for name, value in machine.items():
        shown = value if not isinstance(value, dict) else "  ".join(map(" ".join, value.items()))
        console.print(f"{name}: {shown}", markup=False, highlight=False)
    console.print(
        "\nOne run, cases interleaved. A ratio is a time over the first row's: median, least and\n"
        "greatest over the rounds; above 1 is slower. Quote ratios, not times.\n",
        highlight=False,
    )
    if busy():
        console.print(
            "WARNING: other processes use these cores. Ratios will spread and take longer:\n"
            "wait for an idle machine, or set OMP_NUM_THREADS=1.\n",
            highlight=False,
        )


if __name__ == "__main__":
    main()
