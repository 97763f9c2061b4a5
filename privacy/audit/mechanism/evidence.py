"""What an audit runs the path for, and what it reads off the results."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from privacy.audit.mechanism.runs import Outcome, StepPath, run
from privacy.audit.mechanism.toy import LAYERS, Toy

ATTEMPTS = (1, 2)

_QUIET = 2.0**-40  # so little noise that what a step did to every record can be read off
_SHARE = 4  # trials for every start that serves the checks alone


@dataclass(frozen=True)
class Evidence:
    """Results by number of workers.

    Attributes:
        toy: the records.
        present: starts with all records.
        absent: starts without the canary.
        empty: starts without any record.
        quiet: starts with all records and hardly any noise, for each attempt; start i of any
            number of workers and any attempt has the same key.
    """

    toy: Toy
    present: dict[int, Outcome]
    absent: dict[int, Outcome]
    empty: dict[int, Outcome]
    quiet: dict[int, tuple[Outcome, ...]]

    @classmethod
    def gather(
        cls, path: StepPath, toy: Toy, workers: Sequence[int], trials: int, steps: int
    ) -> "Evidence":
        """Run `path`: `trials` starts with, and as many without, the canary, and others beside."""
        everyone = np.arange(toy.dpsgd.records)
        count = trials // len(workers)
        few = max(count // _SHARE, 2)
        keys = [path.key() for _ in range(few)]
        silenced = dataclasses.replace(toy.dpsgd, noise_multiplier=_QUIET)
        quiet = dataclasses.replace(toy, dpsgd=silenced)

        def runs(present: np.ndarray, starts: int) -> dict[int, Outcome]:
            return {
                size: run(
                    path,
                    toy,
                    workers=size,
                    keys=[path.key() for _ in range(starts)],
                    steps=steps,
                    present=present,
                )
                for size in workers
            }

        return cls(
            toy,
            present=runs(everyone, count),
            absent=runs(np.delete(everyone, toy.canary), count),
            empty=runs(everyone[:0], few),
            quiet={
                size: tuple(
                    run(
                        path,
                        quiet,
                        workers=size,
                        keys=keys,
                        steps=steps,
                        present=everyone,
                        attempt=attempt,
                    )
                    for attempt in ATTEMPTS
                )
                for size in workers
            },
        )

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the results of all runs."""
        yield from self.present.values()
        yield from self.absent.values()
        yield from self.empty.values()
        yield from itertools.chain.from_iterable(self.quiet.values())

    def scores(self, canary: bool, steps: int) -> np.ndarray:
        """Return how much likelier each start is with the canary than without: [starts].

        The log-likelihood ratio of `steps` steps, in x, the projection of a gradient on the
        canary's, in units of C / (q N): sum of ln(1 - q + q exp((2 x - 1) / (2 sigma^2))).
        """
        outcomes = self.present if canary else self.absent
        gradients = np.concatenate([outcome.gradients for outcome in outcomes.values()])
        units = self.toy.in_units(gradients[:, :steps, :, self.toy.canary])
        x = units.sum(axis=-1) / LAYERS
        q, sigma = self.toy.dpsgd.sampling_probability, self.toy.dpsgd.noise_multiplier
        with np.errstate(divide="ignore"):
            left_out = np.log1p(-q)
        taken = np.log(q) + (2 * x - 1) / (2 * sigma**2)
        return np.logaddexp(left_out, taken).sum(axis=1)

    @cached_property
    def noise(self) -> dict[int, np.ndarray]:
        """Noise in standard deviations where no record adds to it: [starts, steps, coordinates]."""
        idle = slice(self.toy.dpsgd.records, None)
        joined = {
            size: np.concatenate([with_it.gradients, self.absent[size].gradients])
            for size, with_it in self.present.items()
        }
        return {
            size: self.toy.in_deviations(gradients[..., idle]).reshape(*gradients.shape[:2], -1)
            for size, gradients in joined.items()
        }

    @cached_property
    def noise_of_empty_batches(self) -> dict[int, np.ndarray]:
        """Noise in standard deviations of steps without records: [starts, steps, coordinates]."""
        return {
            size: self.toy.in_deviations(outcome.gradients).reshape(
                *outcome.gradients.shape[:2], -1
            )
            for size, outcome in self.empty.items()
        }

    @cached_property
    def steps_of_records(self) -> dict[int, np.ndarray]:
        """Quiet steps in units of a clipped record: [starts, attempts, steps, layers, width]."""
        return {
            size: self.toy.in_units(np.stack([one.gradients for one in attempts], axis=1))
            for size, attempts in self.quiet.items()
        }

    @cached_property
    def masks(self) -> dict[int, np.ndarray]:
        """Who was in a batch: bool [starts, attempts, steps, N]."""
        return {
            size: moved[..., 0, : self.toy.dpsgd.records] > 0.5
            for size, moved in self.steps_of_records.items()
        }
