"""The smallest noise that keeps a plan within a target epsilon."""

import dataclasses
from collections.abc import Callable, Sequence

from privacy.accounting import accountant as accountant_called
from privacy.errors import InvalidRequest
from privacy.mechanisms import Mechanism, SubsampledGaussian
from privacy.validation import open_probability, positive_number

# More noise than this leaves nothing of any gradient.
_MAX_NOISE = 1e6


def noise_multiplier(
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    fixed: Sequence[Mechanism] = (),
    accountant: str = "rdp",
    tolerance: float | None = None,
) -> float:
    """Return a noise multiplier whose ε is at most the target, and less than it by little.

    Doubles from 10 until the target is kept, then halves the interval until ε is within
    `tolerance` below the target. With accountant "rdp" and tolerance 0.01 that is the procedure
    by which the noise multipliers of the DPDM paper (Table 4.9) were found, to the last digit.

    `sampling_probability` (q) and `steps` (T) are those of the mechanism to calibrate; `fixed` are
    mechanisms that the same plan runs besides, with noise of their own. `tolerance` is how far ε
    may stay below the target, one thousandth of it by default.

    Raises InvalidRequest for bad values, and if no noise can keep the target, because `fixed` alone
    costs more or the target is too small for so many steps.

    >>> noise_multiplier(10, 1e-5, sampling_probability=1 / 15, steps=4500, tolerance=0.01)
    2.48779296875
    """
    target = positive_number("target_epsilon", target_epsilon)
    delta = open_probability("delta", delta)
    slack = target / 1000 if tolerance is None else positive_number("tolerance", tolerance)
    account = accountant_called(accountant)
    first = SubsampledGaussian(sampling_probability, 10.0, steps)

    def cost(sigma: float) -> float:
        plan = dataclasses.replace(first, noise_multiplier=sigma)
        return account.epsilon([*fixed, plan], delta)

    spent = account.epsilon(fixed, delta)
    if spent >= target:
        raise InvalidRequest(
            f"target_epsilon: the plan's fixed mechanisms alone cost {spent:.6g} at delta={delta}, "
            f"the target is {target!r}. Raise the target or give them more noise."
        )
    return _bisect(cost, target, slack)


def _bisect(cost: Callable[[float], float], target: float, slack: float) -> float:
    """Return noise whose cost is at most the target and within `slack` of it; see the caller."""
    lower, upper = 0.0, 10.0
    while (epsilon := cost(upper)) > target:
        lower, upper = upper, 2 * upper
        if upper > _MAX_NOISE:
            raise InvalidRequest(
                f"target_epsilon: {target!r} cannot be kept with a noise multiplier up to "
                f"{_MAX_NOISE:g}. Raise the target, or lower the steps or the sampling "
                "probability."
            )
    # The second condition ends the search where the accountant's own grain is coarser than slack.
    while target - epsilon > slack and upper - lower > 1e-9 * upper:
        middle = (lower + upper) / 2
        attempt = cost(middle)
        if attempt <= target:
            upper, epsilon = middle, attempt
        else:
            lower = middle
    return upper
