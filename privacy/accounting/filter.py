"""The RDP filter: may this be admitted under a budget of (epsilon, delta)?"""

import math

import numpy as np

from privacy.accounting.rdp import ORDERS, epsilon_of
from privacy.errors import InvalidRequest
from privacy.validation import open_probability, positive_number


class RDPFilter:
    """Admits a composition if and only if some order's RDP stays within the budget's bound.

    Order by order it inverts the conversion that `RDPAccountant` uses, so that admitting a curve
    and the curve's epsilon being within the budget are the same statement. Filters under adaptive
    composition: Feldman and Zrnic 2021; Lécuyer 2021.

    Attributes:
        limit: the budget's epsilon.
        delta: the budget's delta.
        bound: the largest RDP admitted at each order of ORDERS, shape [A], read-only; orders with
            a negative bound never admit anything.
    """

    def __init__(self, epsilon: float, delta: float) -> None:
        self.limit = positive_number("epsilon", epsilon)
        self.delta = open_probability("delta", delta)
        self.bound = _bound(self.limit, self.delta)

    def admits(self, curve: np.ndarray) -> bool:
        """Returns whether the composed RDP `curve`, shape [A], is within the budget.

        Raises:
            InvalidRequest: if `curve` is no RDP curve over ORDERS (fail closed).
        """
        return bool(np.any(_checked(curve) <= self.bound))

    def epsilon(self, curve: np.ndarray) -> float:
        """Returns the epsilon that `curve` has spent at the budget's delta.

        Raises:
            InvalidRequest: if `curve` is no RDP curve over ORDERS.
        """
        return epsilon_of(_checked(curve), self.delta)


def _bound(epsilon: float, delta: float) -> np.ndarray:
    """Returns the RDP at which each order's conversion gives exactly `epsilon`.

    Canonne, Kamath, Steinke 2020, Proposition 12, solved for the RDP; and delta <= sqrt(1 -
    exp(-KL)), by which an RDP below -log(1 - delta^2) already means epsilon = 0.
    """
    renyi = epsilon - np.log1p(-1 / ORDERS) + np.log(delta * ORDERS) / (ORDERS - 1)
    # The library asks for strictly less; a rounding error's width keeps on its side.
    divergence = -math.log1p(-(delta**2)) * (1 - 1e-9)
    bound: np.ndarray = np.maximum(renyi, divergence)
    bound.setflags(write=False)
    return bound


def _checked(curve: np.ndarray) -> np.ndarray:
    values = np.asarray(curve, dtype=np.float64)
    if values.shape != ORDERS.shape:
        raise InvalidRequest(
            f"RDP curve: expected one value for each of {len(ORDERS)} orders, "
            f"found shape {values.shape}."
        )
    if np.any(np.isnan(values)) or np.any(values < 0):
        raise InvalidRequest("RDP curve: expected values of at least 0, found negative or NaN.")
    return values
