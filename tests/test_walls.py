"""Walls that import-linter cannot see: imports that have to wait, and names that are not ours.

The other walls are contracts of import-linter in `pyproject.toml`.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.house import PACKAGES, ROOT

_OURS = {*PACKAGES, "tests", "benchmarks"}
_HEAVY = ("torch", "ray", "mlflow")
# Without torch, Ray and MLflow these import within milliseconds, and so do the commands that need
# nothing else.
_LIGHT = (
    "eval.settings",
    "pipeline.cli.main",
    "pipeline.home",
    "pipeline.plan",
    "pipeline.runs.control",
    "pipeline.runs.directory",
    "pipeline.spec",
    "privacy.accounting",
    "privacy.audit",
    "privacy.budget",
    "privacy.ledger",
    "synth.methods.diffusion",
    "synth.methods.moments",
    "synth.settings",
)
# Documented by their owners in spite of the underscore.
_PUBLIC = (
    "os._exit",
    "torch._foreach_",
    "torch.ops.aten._",  # operators are named so
    "torch.utils._python_dispatch.TorchDispatchMode",  # "Extending PyTorch"
)


@pytest.mark.parametrize("module", _LIGHT)
def test_importing_it_brings_no_heavy_library_in(module):
    code = f"import sys, {module}; print(*(name for name in {_HEAVY} if name in sys.modules))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert shown.stdout.split() == []


def test_no_private_name_of_a_dependency_is_used():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for folder in sorted(_OURS)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in private_names(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import ray._private.node", [(1, "ray._private.node")]),
        ("from ray._private import node as n", [(1, "ray._private.node")]),
        ("from ray.train.v2._internal.x import Y", [(1, "ray.train.v2._internal.x.Y")]),
        ("import ray\nray._private.worker()", [(2, "ray._private")]),
        ("import torch as t\nt.nn._reduction.f()", [(2, "torch.nn._reduction")]),
        ("from torch import nn\nnn._reduction", [(2, "torch.nn._reduction")]),
        ("import os\nos._exit(1)", []),
        ("from privacy.ledger import _private", []),
        ("from __future__ import annotations\nimport ray\nray.__version__", []),
    ],
)
def test_private_names_are_found(code, expected):
    assert list(private_names(ast.parse(code))) == expected


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and full name of each use of another package's private module or name."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        for short, full in _imports(node):
            # `import a.b` binds a.
            top = short.partition(".")[0]
            imported[top] = full if top == short else top
            if _is_private(full) and not full.startswith(_PUBLIC):
                yield node.lineno, full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            first, _, rest = ast.unparse(node).partition(".")
            full = f"{imported.get(first, first)}.{rest}"
            if first in imported and not full.startswith(_PUBLIC):
                yield node.lineno, full


def _imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what an import statement binds, and the full name of what it means, unless ours."""
    if isinstance(node, ast.Import):
        names = [(alias.asname or alias.name, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [
            (alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names
        ]
    else:
        names = []
    yield from ((short, full) for short, full in names if full.partition(".")[0] not in _OURS)


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
