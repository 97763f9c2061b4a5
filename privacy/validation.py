"""Validation of values that cross a public interface: every check returns the value it accepts.

Each check takes the name by which its error calls the value, then the value, and raises
`InvalidRequest` with what was expected and what was found.
"""

import math
import numbers
import re
import sys
from collections.abc import Mapping
from typing import Any

from privacy.errors import InvalidRequest

# Every integer up to here is exact in a double and in JSON.
MAX_STEPS = 2**53

KEY_BYTES = 32

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_MAX_TEXT = 256


def positive_number(name: str, value: object) -> float:
    """Return `value` as a float if it is a positive, finite, normal real number.

    Booleans, strings and tensors are not numbers here. Raises InvalidRequest for anything else.

    >>> positive_number("epsilon", 8)
    8.0
    >>> positive_number("epsilon", float("nan"))
    Traceback (most recent call last):
    privacy.errors.InvalidRequest: epsilon: expected a positive, finite number, found nan.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidRequest(
            f"{name}: expected a positive number, found {_shown(value)} ({type(value).__name__})."
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # Subnormal numbers are refused: their relative precision is too poor to account with.
    if not math.isfinite(number) or number < sys.float_info.min:
        subnormal = " that is not subnormal" if 0 < number < 1 else ""
        raise InvalidRequest(
            f"{name}: expected a positive, finite number{subnormal}, found {number!r}."
        )
    return number


def probability(name: str, value: object) -> float:
    """Return `value` as a float in (0, 1]; raise InvalidRequest for anything else."""
    number = positive_number(name, value)
    if number > 1.0:
        raise InvalidRequest(f"{name}: expected a probability in (0, 1], found {number!r}.")
    return number


def open_probability(name: str, value: object) -> float:
    """Return `value` as a float in (0, 1), as a δ must be; raise InvalidRequest otherwise."""
    number = positive_number(name, value)
    if number >= 1.0:
        raise InvalidRequest(f"{name}: expected a number between 0 and 1, found {number!r}.")
    return number


def whole_number(name: str, value: object, least: int = 0) -> int:
    """Return `value` as an int in [least, MAX_STEPS]; raise InvalidRequest for anything else.

    >>> whole_number("records", 60_000, least=1)
    60000
    """
    return _integer(name, value, least, MAX_STEPS, "2**53")


def positive_int(name: str, value: object) -> int:
    """Return `value` as an int in [1, MAX_STEPS]; raise InvalidRequest for anything else."""
    return whole_number(name, value, least=1)


def uint64(name: str, value: object) -> int:
    """Return `value` as an int in [0, 2**64); raise InvalidRequest for anything else."""
    return _integer(name, value, 0, 2**64 - 1, "2**64 - 1")


def boolean(name: str, value: object) -> bool:
    """Return `value` if it is a bool; raise InvalidRequest for anything else."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name}: expected true or false, found {_shown(value)}.")
    return value


def identifier(name: str, value: object) -> str:
    """Return a name of letters, digits and `._/-`; raise InvalidRequest for anything else."""
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise InvalidRequest(
            f"{name}: expected 1 to 128 letters, digits or any of . _ / - and first a letter "
            f"or a digit, found {_shown(value)}."
        )
    return value


def text_line(name: str, value: object) -> str:
    """Return a printable text of 1 to 256 characters; raise InvalidRequest for anything else."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise InvalidRequest(
            f"{name}: expected 1 to {_MAX_TEXT} printable characters, found {_shown(value)}."
        )
    return value


def sha256(name: str, value: object) -> str:
    """Return a SHA-256 as 64 lower-case hex digits; raise InvalidRequest for anything else."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise InvalidRequest(
            f"{name}: expected a SHA-256 as 64 lower-case hex digits, found {_shown(value)}."
        )
    return value


def key_bytes(value: object) -> bytes:
    """Return a key of 32 bytes; raise InvalidRequest, which never shows the key, otherwise."""
    if not isinstance(value, bytes) or len(value) != KEY_BYTES:
        found = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise InvalidRequest(f"key: expected {KEY_BYTES} bytes, found {found}.")
    return value


def steps_by_component(name: str, value: object) -> dict[str, int]:
    """Return numbers of steps, each at least 0, by component; raise InvalidRequest otherwise."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(
            f"{name}: expected numbers by component, found {type(value).__name__}."
        )
    return {
        identifier("component", component): whole_number(f"{name} of {_shown(component)}", steps)
        for component, steps in value.items()
    }


def _integer(name: str, value: object, least: int, most: int, most_shown: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidRequest(
            f"{name}: expected a whole number, found {_shown(value)} ({type(value).__name__})."
        )
    number = int(value)
    if not least <= number <= most:
        raise InvalidRequest(
            f"{name}: expected a whole number from {least} to {most_shown}, found {_shown(number)}."
        )
    return number


def _shown(value: Any) -> str:
    try:
        return repr(value)[:_MAX_TEXT]
    except ValueError:  # Python refuses to write integers of thousands of digits
        return "a number of thousands of digits"
