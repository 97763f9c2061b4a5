"""Privacy loss of one pure DP step, for prv-accountant.

Imported only once prv-accountant is wanted, because its base class has to be there.
"""

import math

from prv_accountant.privacy_random_variables import PureDPMechanism

from privacy.accounting.opacus_rdp import pure_rdp


class PureLoss(PureDPMechanism):
    """The library's two-point loss: +epsilon with probability e^epsilon / (1 + e^epsilon)."""

    def mean(self) -> float:
        """Returns the mean, epsilon (e^epsilon - 1) / (e^epsilon + 1)."""
        return self.eps * math.tanh(self.eps / 2)

    def rdp(self, alpha: float) -> float:
        """Returns the RDP of order `alpha`.

        The library's own is (alpha - 1) epsilon / alpha, which is below the truth for most epsilon
        above one. It sets the width of the domain, and too narrow a domain loses mass.
        """
        return pure_rdp(self.eps, alpha)
