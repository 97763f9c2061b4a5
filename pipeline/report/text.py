"""Numbers as words of the report; an ε is only ever rounded up."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def epsilon(value: float, digits: int = 2) -> str:
    """An ε rounded UP to `digits` decimals: a bound must not shrink by being printed."""
    if not math.isfinite(value):
        return "∞"
    # Decimal from the shortest text of the float: exact, and 1.1 does not become 1.11.
    rounded = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING)
    if value > 0 and rounded <= Decimal(1).scaleb(-digits) and digits < 6:
        return epsilon(value, digits + 2)
    return f"{rounded:f}"


def left(value: float) -> str:
    """What is left of a budget, rounded DOWN: the page must not offer what is not there."""
    if not math.isfinite(value):
        return "∞"
    return f"{Decimal(repr(float(value))).quantize(Decimal('0.01'), ROUND_FLOOR):f}"


def power(value: float) -> str:
    """A small number such as δ as `10⁻⁵` or `1.5 × 10⁻⁵`, rounded up in its third digit."""
    if value == 0 or not math.isfinite(value) or value >= 0.01:
        return f"{value:.3g}"
    exact = Decimal(repr(float(value)))
    exponent = exact.adjusted()
    mantissa = exact.scaleb(-exponent).quantize(Decimal("0.01"), ROUND_CEILING)
    if mantissa >= 10:
        mantissa, exponent = Decimal(1), exponent + 1
    ten = "10" + str(exponent).translate(_SUPERSCRIPT)
    return ten if mantissa == 1 else f"{float(mantissa):g} × {ten}"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in [0, 1] as per cent, with the narrow space that belongs there."""
    return f"{100 * fraction:.{digits}f}\u202f%"


def percent_up(fraction: float) -> str:
    """A bound as per cent with two decimals, rounded up."""
    return percent(math.ceil(round(fraction * 1e4, 6)) / 1e4, 2)


def number(value: float | int | str) -> str:
    """A count with thousands, another number with up to six digits, text as it is."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}"


def detection(epsilon_: float, delta: float, false_alarms: float) -> float:
    """The most members any attacker can find at that rate of false alarms.

    min(e^ε·a + δ, 1 − e^{−ε}(1 − δ − a)): the region that (ε, δ) leaves to a test (Kairouz, Oh,
    Viswanath 2015, theorem 2.1), for every attacker, whatever else is known.
    """
    low = math.exp(min(epsilon_, 700.0)) * false_alarms + delta
    high = 1 - math.exp(-epsilon_) * (1 - delta - false_alarms)
    return min(1.0, low, high)
