"""The size of the house in numbers: `python -m benchmarks.house`, or `make house`.

Counts files, lines, bodies, docstrings, comments and imports of the product's packages, and the
frames of its own between the command line and the clipped gradient, which it finds by running a
tiny training on embedded Ray.
"""

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

PACKAGES = ("privacy", "synth", "eval", "pipeline")
ROOT = Path(__file__).parents[1]
_CLIP = "clip_factors"  # of privacy/clipping.py: every engine's gradients pass through it
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class House:
    """What `make house` prints.

    Attributes:
        files: product modules.
        lines: of all of them.
        file_median, file_p90: lines of a module.
        body_median, body_p90: lines of a function without its docstring and decorators.
        documented: part of the public modules, classes and functions that have a docstring.
        comments: part of all lines that hold a comment and nothing else.
        imports: part of all lines that belong to import statements.
    """

    files: int
    lines: int
    file_median: float
    file_p90: float
    body_median: float
    body_p90: float
    documented: float
    comments: float
    imports: float


def measure(root: Path = ROOT) -> House:
    """Count the product modules under `root`."""
    modules = [(path, path.read_text()) for path in product_files(root)]
    trees = [ast.parse(text) for _, text in modules]
    sizes = [len(text.splitlines()) for _, text in modules]
    bodies = [length for tree in trees for length in _body_lengths(tree)]
    documented = [has for tree in trees for has in _docstrings(tree)]
    lines = sum(sizes)
    return House(
        files=len(modules),
        lines=lines,
        file_median=statistics.median(sizes),
        file_p90=_p90(sizes),
        body_median=statistics.median(bodies),
        body_p90=_p90(bodies),
        documented=sum(documented) / len(documented),
        comments=sum(_own_line_comments(path) for path, _ in modules) / lines,
        imports=sum(map(_import_lines, trees)) / lines,
    )


def product_files(root: Path = ROOT) -> list[Path]:
    """Return the product's modules in order of their paths."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def _p90(values: Sequence[int]) -> float:
    return float(np.quantile(values, 0.9))


def _body_lengths(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            said = node.body[0] if ast.get_docstring(node) is not None else None
            yield _extent(node) - (_extent(said) if said else 0)


def _docstrings(tree: ast.Module) -> Iterator[bool]:
    """Yield for each public name of a module whether it is documented; dunder methods are not."""
    yield ast.get_docstring(tree) is not None
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    while scopes:
        for node in scopes.pop().body:
            if isinstance(node, _Definition) and not node.name.startswith("_"):
                yield ast.get_docstring(node) is not None
                if isinstance(node, ast.ClassDef):
                    scopes.append(node)


def _own_line_comments(path: Path) -> int:
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    return sum(
        token.type == tokenize.COMMENT and token.line.lstrip().startswith("#") for token in tokens
    )


def _import_lines(tree: ast.Module) -> int:
    return sum(
        _extent(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
    )


def _extent(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def print_tree(root: Path = ROOT) -> None:
    """Print every room with its number of lines and the first sentence of its docstring."""
    folder = None
    for path in product_files(root):
        text = path.read_text()
        if path.parent != folder:
            folder = path.parent
            print(f"\n{folder.relative_to(root)}/")
        said = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        print(f"  {path.name:<26}{len(text.splitlines()):>5}  {said}")


# Runs before everything else in each Python process of the traced run, workers too: notes who
# called the clipping, and in the driver, whose main thread waits meanwhile, what it waits in.
_TRACER = """
import importlib.abc, importlib.machinery, json, os, sys, threading, time, traceback

OUT, CLIP = os.environ["HOUSE_OUT"], os.environ["HOUSE_CLIP"]

def stack(frame):
    return [(f.f_code.co_filename, f.f_code.co_qualname) for f, _ in traceback.walk_stack(frame)]

def write(kind, frames):
    with open(f"{OUT}/{kind}", "a") as file:
        file.write(json.dumps([time.time(), frames]) + "\\n")

def patch(module):
    plain = getattr(module, CLIP)
    def traced(*args, **kwargs):
        frames = stack(sys._getframe(1))
        if any("/privacy/gradients/" in name for name, _ in frames):
            write("worker", [(module.__file__, CLIP), *frames])
        return plain(*args, **kwargs)
    setattr(module, CLIP, traced)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "privacy.clipping":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), patch(module))
        return spec

def watch(main):
    while True:
        time.sleep(0.02)
        write("driver", stack(sys._current_frames()[main]))

sys.meta_path.insert(0, Finder())
if os.environ.pop("HOUSE_DRIVER", None):
    threading.Thread(target=watch, args=(threading.main_thread().ident,), daemon=True).start()
"""

_SPEC = """
name: house
data:
  name: digits
  source: {kind: digits, split: train}
  records: 1438
  size: 8
  channels: 1
  classes: [zero, one, two, three, four, five, six, seven, eight, nine]
  public: true
privacy: {epsilon: 5.0, delta: 1.0e-4}
model: {base: 8, multipliers: [1, 2], blocks: 1, attention: [4]}
train: {batch: 64, steps: 10, views: 2}
synthesize: {images: 10, sampler: ddim, steps: 2}
"""


def frames(root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Return our own frames of driver and worker, outermost first, where a gradient is clipped.

    Runs `umbra submit` of a tiny spec in a home of its own, which takes about half a minute.

    Raises:
        RuntimeError: the run failed, or clipped nothing.
    """
    with tempfile.TemporaryDirectory(prefix="umbra-house-") as scratch:
        folder = Path(scratch)
        (folder / "sitecustomize.py").write_text(_TRACER)
        (folder / "spec.yaml").write_text(_SPEC)
        environment = os.environ | {
            "PYTHONPATH": f"{folder}{os.pathsep}{root}",
            "UMBRA_HOME": str(folder / "home"),
            "HOUSE_OUT": str(folder),
            "HOUSE_CLIP": _CLIP,
        }
        declare = ["budget", "declare", "digits", "--epsilon", "10", "--delta", "1e-4", "--public"]
        _umbra(root, environment, *declare)
        _umbra(root, environment | {"HOUSE_DRIVER": "1"}, "submit", str(folder / "spec.yaml"))
        return _own_frames(folder, root)


def _umbra(root: Path, environment: dict[str, str], *arguments: str) -> None:
    run = "from pipeline.cli.main import main; main()"
    command = [sys.executable, "-c", run, *arguments]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"umbra {arguments[0]} failed: {done.stderr[-2000:]}")


def _own_frames(folder: Path, root: Path) -> tuple[list[str], list[str]]:
    worker, driver = (
        [json.loads(line) for line in (folder / kind).read_text().splitlines()]
        if (folder / kind).exists()
        else []
        for kind in ("worker", "driver")
    )
    if not worker:
        raise RuntimeError(f"nothing called {_CLIP} from privacy/gradients")
    begun, ended = worker[0][0], worker[-1][0]
    waiting = [tuple(_own(stack, root)) for when, stack in driver if begun <= when <= ended]
    return list(statistics.mode(waiting)), _own(worker[-1][1], root)


def _own(stack: Sequence[Sequence[str]], root: Path) -> list[str]:
    """Return the frames of the product's packages, outermost first."""
    homes = tuple(f"{root / package}{os.sep}" for package in PACKAGES)
    ours = [(name, function) for name, function in stack if name.startswith(homes)]
    return [f"{Path(name).relative_to(root)}: {function}" for name, function in reversed(ours)]


def main() -> None:
    """Print the numbers, the frames and the tree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree that is measured")
    parser.add_argument("--static", action="store_true", help="run nothing, count no frames")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    house = measure(root)
    for field in fields(house):
        value = getattr(house, field.name)
        part = field.name in ("documented", "comments", "imports")
        print(f"{field.name:<14}{100 * value:>9.1f} %" if part else f"{field.name:<14}{value:>9g}")
    if not arguments.static:
        driver, worker = frames(root)
        print(f"{'frames':<14}{len(driver) + len(worker):>9}")
        for kind, own in (("driver", driver), ("worker", worker)):
            print(f"  {kind}, {len(own)}:", *own, sep="\n    ")
    print_tree(root)


if __name__ == "__main__":
    main()
