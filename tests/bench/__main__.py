"""Ratios against peers on this machine: `python -m tests.bench` from the repository's root."""

import argparse
import json
import logging
import warnings
from pathlib import Path
from time import monotonic

from rich.console import Console

from .cases import FULL, QUICK, measure
from .curves import curves
from .machine import busy, describe
from .memory import peaks
from .plot import draw
from .table import render, render_curves, render_peaks

_ROUNDS = 5  # of a curve


def main() -> None:
    """Print each section's table as it is done, and write all of them as JSON and as a picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="within a minute, wider spread")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench.json"), help="default: %(default)s"
    )
    arguments = parser.parse_args()
    # Opacus warns of its own hooks on every backward pass.
    warnings.filterwarnings("ignore")
    logging.getLogger("opacus").setLevel(logging.ERROR)

    console, machine, start = Console(width=110), describe(), monotonic()
    for name, value in machine.items():
        shown = value if not isinstance(value, dict) else "  ".join(map(" ".join, value.items()))
        console.print(f"{name}: {shown}", markup=False, highlight=False)
    console.print(
        "\nOne run, cases interleaved. A ratio is a time over the first row's: its median over\n"
        "the rounds, the least and the greatest; above 1 is slower. Quote ratios, not times.\n",
        highlight=False,
    )
    if busy():
        console.print(
            "WARNING: other processes use these cores. Ratios will be wide and the run long;\n"
            "wait for a quiet machine, or set OMP_NUM_THREADS=1.\n",
            highlight=False,
        )
    results = []
    for result in measure(QUICK if arguments.quick else FULL):
        console.print(render(result), highlight=False)
        results.append(result.to_dict())
    memory, growth = list(peaks()), list(curves(_ROUNDS))
    console.print(render_peaks(memory), render_curves(growth), highlight=False)
    report = {
        "machine": machine,
        "quick": arguments.quick,
        "seconds": round(monotonic() - start, 1),
        "sections": results,
        "memory": [peak.to_dict() for peak in memory],
        "curves": [curve.to_dict() for curve in growth],
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    picture = arguments.json.with_suffix(".png")
    draw(report, picture)
    console.print(
        f"{report['seconds']} s; written to {arguments.json} and {picture}", highlight=False
    )


if __name__ == "__main__":
    main()
