"""Printing an epsilon without understating it."""

import math
from decimal import ROUND_CEILING, Context, Decimal

from privacy.errors import InvalidRequest

# Enough digits for the exact decimal expansion of any double.
_EXACT = Context(prec=1100)


def round_up(epsilon: float, digits: int = 4) -> float:
    """Returns the least number with `digits` decimals that is not below `epsilon`.

    Works on the exact decimal expansion of the double, so 0.1 (which lies above one tenth) rounds
    up to 0.1001 at four digits. Infinity stays infinite.

    Raises:
        InvalidRequest: for NaN or a negative epsilon, or digits outside 0 to 15.
    """
    if not 0 <= digits <= 15:
        raise InvalidRequest(f"digits: expected a number from 0 to 15, found {digits!r}.")
    if math.isnan(epsilon) or epsilon < 0:
        raise InvalidRequest(f"epsilon: expected a number of at least 0, found {epsilon!r}.")
    if math.isinf(epsilon):
        return math.inf
    unit = Decimal(1).scaleb(-digits)
    return float(Decimal(epsilon).quantize(unit, rounding=ROUND_CEILING, context=_EXACT))
