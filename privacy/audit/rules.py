"""How the replay says that a row breaks a rule."""

from typing import Any


class BrokenRule(Exception):
    """A row breaks a rule of its kind; becomes a finding."""


def require(holds: bool, problem: str) -> None:
    """Raise BrokenRule with `problem` unless it holds."""
    if not holds:
        raise BrokenRule(problem)


def whole(value: Any) -> int:
    """Return a whole number of at least 1. Raises BrokenRule on anything else."""
    if type(value) is not int or value < 1:
        raise BrokenRule(f"a whole number of at least 1 was expected, found {value!r}")
    return value
