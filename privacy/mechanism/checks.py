"""Numbers that may be accounted with; anything else is refused before it reaches the ledger."""

import math
import numbers
import sys

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
