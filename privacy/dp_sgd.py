"""The private gradient of one step: Poisson batch, one clip a record, one noise a step.

g = (sum_i clip(grad l_i, C) + N(0, sigma^2 C^2 I)) / (q N)

(Abadi et al. 2016; with the record's loss l_i averaged over K noised views before its clip,
Dockhorn et al. 2023, algorithm 4.)
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from privacy.clipping import add_to, zero_sums
from privacy.collective import Collective
from privacy.errors import InvalidRequest
from privacy.gradients import engines, memory
from privacy.gradients.base import GradientEngine, RecordLoss, trainable
from privacy.mechanisms import SubsampledGaussian
from privacy.noise import SecureGaussian, add_noise, noise_like
from privacy.poisson import PoissonSampler
from privacy.validation import positive_int, positive_number

Gather = Callable[[np.ndarray], tuple[Tensor, ...]]


@dataclass(frozen=True)
class DPSGD:
    """The mechanism of every step of one training; all of it is public.

    What the ledger accounts for is what runs and what an audit runs.

    Attributes:
        records: N, public under the zero-out relation.
        sampling_probability: q.
        noise_multiplier: sigma, in units of the clip norm.
        clip_norm: C.

    >>> dpsgd = DPSGD(60_000, sampling_probability=1 / 15, noise_multiplier=2.5, clip_norm=1.0)
    >>> dpsgd.expected_batch
    4000.0
    """

    records: int
    sampling_probability: float
    noise_multiplier: float
    clip_norm: float

    def __post_init__(self) -> None:
        positive_int("the number of records", self.records)
        positive_number("the clip norm", self.clip_norm)
        self.mechanism(1)

    @property
    def expected_batch(self) -> float:
        """The fixed public number that sums are divided by: q N."""
        return self.sampling_probability * self.records

    def mechanism(self, steps: int) -> SubsampledGaussian:
        """Return the mechanism that `steps` steps are charged as."""
        return SubsampledGaussian(self.sampling_probability, self.noise_multiplier, steps)


class PrivateGradient:
    """Draws batches and noise for one worker of one attempt; call it once a step on every worker.

    Attributes:
        dpsgd: the mechanism that every call is one use of.
    """

    def __init__(
        self,
        dpsgd: DPSGD,
        sampler: PoissonSampler,
        noise: SecureGaussian,
        engine: GradientEngine,
        collective: Collective,
        micro_batch: int,
    ) -> None:
        """Combine the parts.

        Args:
            dpsgd: the mechanism.
            sampler: keyed by the run and the attempt.
            noise: this attempt's own stream; only rank 0's is used.
            engine: how to compute clipped gradients, as long as memory suffices.
            collective: the other workers.
            micro_batch: records in memory at a time.

        Raises:
            InvalidRequest: the sampler's q is not the mechanism's, or the micro-batch is below 1.
        """
        # A negative one would silently leave every record out.
        positive_int("the micro-batch", micro_batch)
        if sampler.sampling_probability != dpsgd.sampling_probability:
            accounted = f"but what is accounted for is q = {dpsgd.sampling_probability}"
            found = sampler.sampling_probability
            raise InvalidRequest(f"the sampler draws with q = {found}, {accounted}")
        self.dpsgd = dpsgd
        self._sampler, self._noise, self._collective = sampler, noise, collective
        self._backoff = memory.OOMBackoff(engine, engines.TwoPassEngine(), micro_batch)
        self._next_step = 0

    def __call__(
        self, step: int, model: nn.Module, loss: RecordLoss, record_ids: np.ndarray, gather: Gather
    ) -> dict[str, Tensor]:
        """Return the noised mean gradient of `step`, which must have been charged before.

        Args:
            step: number of the step within this attempt, above those of all calls before.
            model: network; parameters without `requires_grad` are left alone.
            loss: loss of one record.
            record_ids: uint64 [n], the records that this worker owns; each has one owner.
            gather: positions [m] into `record_ids` -> those records' tensors, leading dimension m.

        Returns:
            Gradients by trainable parameter, of its dtype and device, the same on every worker.

        Raises:
            InvalidRequest: for a step that this attempt has had.
            torch.OutOfMemoryError: not even one record fits.
        """
        if step < self._next_step:  # its mask would be drawn again
            advice = f"go on from step {self._next_step} or begin a new attempt"
            raise InvalidRequest(f"step {step} was taken before, and its mask is spent: {advice}")
        self._next_step = step + 1
        parameters, dpsgd, first = trainable(model), self.dpsgd, self._collective.rank == 0
        # Noise is drawn beside the gradients, or a GPU would wait for it: a core takes a tenth of a
        # second for a million numbers.
        with ThreadPoolExecutor(max_workers=1) as beside:
            if first:
                scale = dpsgd.clip_norm, dpsgd.noise_multiplier
                drawn = beside.submit(noise_like, parameters, *scale, self._noise)
            chosen = np.flatnonzero(self._sampler.mask(step, record_ids))
            # In the order of their ids, so that no order of loading changes a bit of the sums.
            chosen = chosen[np.argsort(record_ids[chosen])]
            sums, done, backoff = zero_sums(parameters), 0, self._backoff
            while done < len(chosen):
                size, part = backoff.micro_batch, None
                with backoff:
                    batch, C = gather(chosen[done : done + size]), dpsgd.clip_norm
                    part = backoff.engine.sum_of_clipped(model, loss, batch, C, size)
                if part is not None:  # else memory ran out, and a leaner attempt follows
                    add_to(sums, part)
                    done += size
            # Noise is added once, before the sum over workers, so that the whole sum never exists
            # without it.
            if first:
                sums = add_noise(sums, drawn.result())
        noised, B = self._collective.sum(sums), dpsgd.expected_batch
        return {name: (total / B).to(parameters[name].dtype) for name, total in noised.items()}
