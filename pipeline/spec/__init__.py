"""Specs: what a run is asked to do, as frozen models read from YAML.

`load_spec(path)` reads one; every error is a `SpecError` with file, line and field.
"""

from pipeline.spec.load import Problem, SpecError, load_spec, parse_spec
from pipeline.spec.spec import Data, Evaluate, Resources, Spec, Workers

__all__ = [
    "Data",
    "Evaluate",
    "Problem",
    "Resources",
    "Spec",
    "SpecError",
    "Workers",
    "load_spec",
    "parse_spec",
]
