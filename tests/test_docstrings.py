"""The examples in the docstrings of `privacy` and `synth` run and print what they say."""

import doctest
import importlib

import pytest

from benchmarks.house import ROOT, product_files

_MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in product_files()
    if path.is_relative_to(ROOT / "privacy") or path.is_relative_to(ROOT / "synth")
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", _MODULES)
def test_examples_print_what_they_say(name):
    failed, attempted = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert attempted > 0
    assert failed == 0
