"""Specs: what a run is asked to do, as frozen models read from YAML.

`load_spec(path)` is the door; every complaint is a `SpecError` with file, line and field.
"""

from pipeline.spec.errors import Problem, SpecError
from pipeline.spec.load import load_spec, parse_spec
from pipeline.spec.spec import Spec

__all__ = ["Problem", "Spec", "SpecError", "load_spec", "parse_spec"]
