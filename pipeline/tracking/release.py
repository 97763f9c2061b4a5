"""The only numbers that may be logged to MLflow: those under a closed list of names.

A private statistic (training loss, gradient norm, clip fraction, actual batch size) must not reach
MLflow even by mistake, so the tracker accepts no dictionary but a `Release`, which refuses unknown
names. A new public metric is one new name in this file, where a reviewer sees it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from pipeline.progress import coarse
from privacy.budget.facts import Shown
from privacy.errors import InvalidRequest

# Costs are functions of the spec alone, known before any record is read.
_COST = {"epsilon_rdp", "epsilon_prv", "epsilon_pld", "delta", "noise_multiplier", "steps"}
_PLANNED = {"sampling_probability", "expected_batch", "clip_norm", "views", "parameters"}
_SIZES = {"cosines", "mixture_components"}
_STEPS = {f"{part}_steps" for part in ("warmup", "sums", "scatter", "lloyd", "mixture")}
_STEPS |= {"histogram_steps", "teacher_steps"}
PLAN_NAMES = frozenset(_COST | _PLANNED | _SIZES | _STEPS)
# Charges are written before the noise is drawn, so they depend on no record either.
SPENT_NAMES = frozenset(_COST | {"dataset_epsilon", "attempts", "warmup_steps"})

_WORD = r"[a-z][a-z0-9_]*"
_INTERVAL = "(?:_low|_high)?"
_CEILING = ".ceiling"
_PATTERNS = {
    "time": _WORD,
    "eval": rf"{_WORD}\.(?:accuracy|ceiling|class\.\d+)"
    rf"|fid|frechet_{_WORD}|precision|recall|density|coverage",
    "dp": rf"{_WORD}\.accuracy{_INTERVAL}|class\.\d+\.count{_INTERVAL}|epsilon",
}


@dataclass(frozen=True)
class Release:
    """Public numbers by full metric name; made by the class methods only.

    These add the section's prefix (`plan.`, `spent.`, `eval.`, `dp.`, `time.`) and refuse names
    outside its list. Messages quote names, never values.
    """

    values: Mapping[str, float]

    def __post_init__(self) -> None:
        for name in self.values:
            if not _is_public(name):
                raise InvalidRequest(
                    f"metric {name!r} may not leave the run: expected a name on the public list of "
                    "pipeline/tracking/release.py; private statistics belong in the run's "
                    "internal/ folder"
                )
        checked = {name: float(value) for name, value in self.values.items()}
        object.__setattr__(self, "values", MappingProxyType(checked))

    @classmethod
    def _of(cls, section: str, values: Mapping[str, float]) -> Self:
        return cls({f"{section}.{name}": value for name, value in values.items()})

    @classmethod
    def plan(cls, values: Mapping[str, float]) -> Self:
        """Release what the run was planned to cost (names of `PLAN_NAMES`)."""
        return cls._of("plan", values)

    @classmethod
    def spent(cls, values: Mapping[str, float]) -> Self:
        """Release what the ledger has charged (names of `SPENT_NAMES`)."""
        return cls._of("spent", values)

    @classmethod
    def seconds(cls, stage: str, seconds: float) -> Self:
        """Release about how long a stage took, as `time.<stage>`."""
        # A step takes longer the more records its batch has.
        return cls._of("time", {stage: coarse(seconds)})

    @classmethod
    def rows(cls, rows: int) -> Self:
        """Release how many synthetic rows were written."""
        return cls({"rows": rows})

    @classmethod
    def evaluation(cls, values: Mapping[str, float], shown: Shown) -> Self:
        """Release measurements against real images.

        Raises:
            InvalidRequest: the ledger does not say that EVERY real image that entered these numbers
                may be `shown` (for a ceiling also those that its classifier was trained on), or a
                name is unknown.
        """
        trained = any(name.endswith(_CEILING) for name in values)
        if not shown.holdout or (trained and not shown.train):
            raise InvalidRequest(
                "measurements against a private reference may not leave the run: expected images "
                "that the ledger says are public; keep them in internal/, or pay for them with a "
                "charged mechanism"
            )
        return cls._of("eval", values)

    @classmethod
    def paid(cls, values: Mapping[str, float]) -> Self:
        """Release noisy figures against a private reference, paid for by a charged mechanism."""
        return cls._of("dp", values)


def is_measured(name: str) -> bool:
    """Return whether a metric was measured on what a run made, and not planned or charged."""
    return name.partition(".")[0] in {"eval", "dp"}


def _is_public(name: str) -> bool:
    """Whether the closed list knows this full metric name."""
    section, _, rest = name.partition(".")
    if section in _PATTERNS:
        return re.fullmatch(_PATTERNS[section], rest) is not None
    return name == "rows" or rest in {"plan": PLAN_NAMES, "spent": SPENT_NAMES}.get(section, ())
