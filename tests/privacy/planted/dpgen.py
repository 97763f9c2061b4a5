"""DPGEN: randomised response whose answers are taken from the private data themselves.

Chen, Yu, Kao, Chou: "DPGEN: Differentially Private Generative Energy-Guided Network for Natural
Image Synthesis" (CVPR 2022) answers for a record with one of its k nearest private neighbours: the
record itself with probability e^eps / (e^eps + k - 1), any other with 1 / (e^eps + k - 1), and
claims eps. Which answers are possible depends on the data, so no eps holds (Dockhorn et al. 2023,
appendix): an answer that only a certain record could have given shows that it is there.
"""

import math

import numpy as np

from privacy.audit.distinguish import epsilon_lower_bound
from tests.privacy.planted.bug import Bug

CLAIM, DELTA, CONFIDENCE = 1.0, 1e-5, 0.999
ANSWERS, RUNS = 4, 4000
ABOVE = "the lower bound lies above the claim"

PRIVATE = np.array([0.11, 0.23, 0.35, 0.52, 0.68, 0.81])
CANARY = 0.3
PUBLIC = np.linspace(0, 1, ANSWERS)  # candidates that were fixed before there were data


def respond(rng, candidates):
    """Return RUNS answers: the first candidate, or with smaller probability any other."""
    truth = math.exp(CLAIM)
    weights = np.array([truth] + [1.0] * (len(candidates) - 1))
    return rng.choice(candidates, RUNS, p=weights / weights.sum())


def nearest(candidates, record):
    return candidates[np.argsort(np.abs(candidates - record))][:ANSWERS]


def over_private_neighbours(rng, canary_there):
    """What DPGEN answers for a record next to the canary."""
    data = np.append(PRIVATE, CANARY) if canary_there else PRIVATE
    return respond(rng, nearest(data, PRIVATE[2]))


def over_public_candidates(rng, canary_there):
    """Warner's randomised response for the canary; a record that is not there counts as 0."""
    return respond(rng, nearest(PUBLIC, CANARY if canary_there else 0.0))


def findings(release):
    """Let a distinguisher that only sees answers guess whether the canary is there."""
    rng = np.random.default_rng(0)
    scores = [-np.abs(release(rng, there) - CANARY) for there in (True, False)]
    bound = epsilon_lower_bound(*scores, DELTA, CONFIDENCE)
    assert bound.detectable > 2 * CLAIM
    return {ABOVE} if bound.epsilon > CLAIM else set()


BUGS = [
    Bug(
        "DPGEN's data-dependent randomised response",
        lambda folder: findings(over_private_neighbours),
        lambda folder: findings(over_public_candidates),
        (ABOVE,),
    )
]
