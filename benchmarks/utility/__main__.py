"""Utility by the protocol of DPDM's paper: `python -m benchmarks.utility run SPEC… --out FOLDER`.

Each spec is submitted `--repeats` times to a home of its own, without its evaluation section, and
its images are exported. The paper's classifiers are then trained on them and tested once on the
spec's holdout. Whatever is finished stays in FOLDER and is not done again, so that a table grows
over many sittings; `python -m benchmarks.utility table FOLDER` prints it.
"""

import argparse
import itertools
from pathlib import Path

from .protocol import Protocol, run
from .results import load_results, markdown


def main() -> None:
    """Run what is missing, or print the table of what is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utility", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="fit, sample and evaluate what is missing")
    running.add_argument("specs", nargs="+", type=Path, metavar="SPEC")
    running.add_argument("--out", type=Path, required=True, help="folder that keeps the results")
    running.add_argument(
        "--epsilons", type=float, nargs="+", default=[1.0], help="default: %(default)s"
    )
    running.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    running.add_argument(
        "--epochs", type=int, default=50, help="of a classifier; the paper's: %(default)s"
    )
    running.add_argument("--images", type=int, default=60_000, help="default: %(default)s")
    running.add_argument(
        "--inception", type=Path, help="TorchScript file of the 2015 Inception, for the FID"
    )
    running.add_argument(
        "--peer", choices=["dp-merf"], help="fit this peer at the spec's (ε, δ) in place of Umbra"
    )
    running.add_argument(
        "--no-test", action="store_true", help="fit and sample only; the holdout stays closed"
    )
    showing = commands.add_parser("table", help="print the results as Markdown")
    showing.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "table":
        print(markdown(load_results(options.folder)))
        return
    protocol = Protocol(options.epochs, options.images, options.inception, options.peer)
    # Every set and every ε once, before any is repeated: the table is wide early.
    for repeat in range(options.repeats):
        for spec, epsilon in itertools.product(options.specs, options.epsilons):
            run(spec, epsilon, repeat, options.out, protocol, test=not options.no_test)


if __name__ == "__main__":
    main()
