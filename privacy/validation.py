"""Checks of numbers and names that cross a public interface."""

import math
import numbers
import re
import sys
from collections.abc import Mapping
from typing import Any

from privacy.errors import InvalidRequest

# Every integer up to here is exact in a double and in JSON.
MAX_STEPS = 2**53


def positive_number(name: str, value: object) -> float:
    """Returns `value` as a float if it is a positive, finite, normal number.

    Args:
        name: what the number is called in the error.
        value: any real number; booleans and strings are not numbers here.

    Raises:
        InvalidRequest: for anything else. Subnormal numbers are refused because their relative
            precision is too poor to account with.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidRequest(
            f"{name}: expected a positive number, found {value!r} ({type(value).__name__})."
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < sys.float_info.min:
        raise InvalidRequest(
            f"{name}: expected a positive, finite number that is not subnormal, found {number!r}."
        )
    return number


def probability(name: str, value: object) -> float:
    """Returns `value` as a float in (0, 1]; raises InvalidRequest for anything else."""
    number = positive_number(name, value)
    if number > 1.0:
        raise InvalidRequest(f"{name}: expected a probability in (0, 1], found {number!r}.")
    return number


def step_count(name: str, value: object) -> int:
    """Returns `value` as an int in [1, MAX_STEPS]; raises InvalidRequest for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidRequest(
            f"{name}: expected a whole number, found {value!r} ({type(value).__name__})."
        )
    count = int(value)
    if not 1 <= count <= MAX_STEPS:
        # Python refuses to write integers of thousands of digits: past 2**53 the size says enough.
        found = f"{count}" if count.bit_length() < 64 else f"one of {count.bit_length()} bits"
        raise InvalidRequest(f"{name}: expected a number from 1 to 2**53, found {found}.")
    return count


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_LONGEST = 256


def name(value: Any, what: str) -> str:
    """Return a name of letters, digits and `._/-`. Raises InvalidRequest on anything else."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequest(
            f"{what} must be 1 to 128 letters, digits or any of . _ / - and begin with a letter "
            f"or a digit, found {_shown(value)}."
        )
    return value


def line(value: Any, what: str) -> str:
    """Return a printable text of 1 to 256 characters. Raises InvalidRequest on anything else."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or not value.isprintable():
        raise InvalidRequest(f"{what} must be 1 to {_LONGEST} printable characters.")
    return value


def sha256(value: Any, what: str) -> str:
    """Return 64 hex digits. Raises InvalidRequest on anything else."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise InvalidRequest(f"{what} must be SHA-256 as 64 lower-case hex digits.")
    return value


def count(value: Any, what: str, least: int = 1) -> int:
    """Return an int from `least` to 2**53. Raises InvalidRequest on anything else, bools too."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= MAX_STEPS:
        raise InvalidRequest(
            f"{what} must be a whole number from {least} to 2**53, found {_shown(value)}."
        )
    return int(value)


def flag(value: Any, what: str) -> bool:
    """Return a bool. Raises InvalidRequest on anything else."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{what} must be true or false, found {_shown(value)}.")
    return value


def steps_by_component(value: Any, what: str) -> dict[str, int]:
    """Return steps of at least 0 by component. Raises InvalidRequest on anything else."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{what} must be numbers by component, found {type(value).__name__}.")
    return {
        name(component, "A component's name"): count(
            steps, f"{what} of {_shown(component)}", least=0
        )
        for component, steps in value.items()
    }


def probability_like(value: Any, what: str) -> float:
    """Return a normal float strictly between 0 and 1. Raises InvalidRequest on anything else."""
    number = positive_number(what, value)
    if number >= 1.0:
        raise InvalidRequest(f"{what} must be below 1, found {number!r}.")
    return number


def _shown(value: Any) -> str:
    try:
        return repr(value)[:_LONGEST]
    except ValueError:  # Python refuses to write integers of thousands of digits
        return "a number of thousands of digits"
