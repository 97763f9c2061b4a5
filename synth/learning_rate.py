"""The learning rate over a training of fixed length."""

import math


def cosine(peak: float, step: int, steps: int) -> float:
    """Return peak (1 + cos(pi step / steps)) / 2: `peak` at step 0, zero at the end.

    Late steps of DP-SGD carry as much noise as early ones; small ones at the end average it away.
    """
    return peak * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
