"""What a fit releases, step by step over all its attempts: charged first, drawn once, kept.

A checkpoint holds noised sums and what was made of them. A crash forfeits what was charged and not
yet kept.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from privacy import moments
from privacy.collective import Collective
from privacy.errors import UmbraError
from privacy.ledger.records import Component
from synth.checkpoint import Checkpoint, keep_last, resume_point, save
from synth.methods.base import Attempt, Meter, OnProgress, Stopped
from synth.storage import StoragePath

# A query: called with its noise multiplier and what noises and adds up its sums.
Ask = Callable[[float, moments.Release], Tensor]

_STOP = -1  # in place of a number of steps
_KEPT = 2  # checkpoints: the last, and one before it should the last be damaged


class Releases:
    """Charges and keeps what this run releases, step by step, over all its attempts."""

    def __init__(
        self,
        components: Sequence[Component],
        attempt: Attempt,
        meter: Meter,
        checkpoints: StoragePath,
        collective: Collective,
        on_progress: OnProgress,
        stopping: Callable[[], bool],
    ) -> None:
        """Go on from the newest sound checkpoint.

        Raises:
            InvalidRequest: this attempt has run before; noise must be fresh.
            UmbraError: the workers do not see the same checkpoints.
            IntegrityBroken: the checkpoint is another run's.
        """
        self.collective = collective
        self._mechanisms = {part.name: part.mechanism for part in components}
        self._attempt, self._meter = attempt, meter
        self._checkpoints, self._on_progress, self._stopping = checkpoints, on_progress, stopping
        self._release = moments.Release(attempt.noise(), collective)
        self._kept: dict[str, Tensor] = {}
        self._done = dict.fromkeys(self._mechanisms, 0)
        # The step of a checkpoint is the teacher's: all else is a step or three.
        self._longest = max(components, key=lambda part: part.mechanism.steps).name
        self._head, self._paid = "", 0
        self._restore()

    def _restore(self) -> None:
        number, origin = self._attempt.number, self._attempt.origin
        found = resume_point(self._checkpoints, number, origin, self.collective)
        if found is None:
            return
        self._kept, self._done[self._longest] = dict(found.model), found.step

    def steps(self, component: str) -> int:
        """Return how many steps of a component were reserved; 0 if it is no part of the plan."""
        return self._mechanisms[component].steps if component in self._mechanisms else 0

    def noise_std(self, component: str, sensitivity: float) -> float:
        """Return the standard deviation of the noise on a sum of that sensitivity."""
        return self._mechanisms[component].noise_multiplier * sensitivity

    def query(self, component: str, ask: Ask) -> Tensor:
        """Return the answer to `ask(noise multiplier, release)`; `pay` has charged its step."""
        if self._paid < 1:
            raise UmbraError(f"{component}: a step was about to be drawn that was not charged")
        self._paid -= 1
        answer = ask(self._mechanisms[component].noise_multiplier, self._release)
        self._done[component] += 1
        self._on_progress(component, self._done[component], self.steps(component))
        return answer.cpu()

    def pay(self, component: str, steps: int = 1) -> int:
        """Charge up to so many steps on every worker's behalf; return how many there were left.

        Raises:
            Stopped: that was asked for; all that was charged is drawn and kept.
        """
        paid = 0
        if self.collective.rank == 0:
            paid = min(self._meter.remaining(component), steps)
            if paid and self._stopping():
                paid = _STOP
            if paid > 0:
                self._head = self._meter.charge(component, paid)
        # The others hear of it when it is paid for and not before.
        self._paid = self.collective.broadcast_from_rank0(paid)
        if self._paid == _STOP:
            raise Stopped(f"stopped as asked, before {component}")
        return self._paid

    def once(self, component: str, name: str, ask: Ask) -> Tensor | None:
        """Return what is kept under a name, or else charge, ask and keep it; None if forfeited."""
        if name not in self._kept:
            if not self.pay(component):
                return None
            self._kept[name] = self.query(component, ask)
            self.save(component)
        return self._kept[name]

    def kept(self, name: str) -> Tensor | None:
        """Return what is kept under a name."""
        return self._kept.get(name)

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep what was made of releases; `save` writes it."""
        self._kept.update(tensors)

    def derived(self, names: Sequence[str], make: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Return tensors that rank 0 makes of releases, float64, the same on every worker.

        Made once for all attempts: a later release is in the terms of an earlier one, and another
        machine might turn an eigenvector the other way.
        """
        if any(name not in self._kept for name in names):
            made = make() if self.collective.rank == 0 else [torch.zeros(())] * len(names)
            for name, tensor in zip(names, made, strict=True):
                self._kept[name] = self._from_rank0(tensor.double().cpu())
        return [self._kept[name] for name in names]

    def _from_rank0(self, tensor: Tensor) -> Tensor:
        first, tell = self.collective.rank == 0, self.collective.broadcast_from_rank0
        shape = [tell(tensor.shape[i] if first else 0) for i in range(tell(tensor.ndim))]
        mine = tensor if first else torch.zeros(shape, dtype=torch.float64)
        return self.collective.sum({"made": mine})["made"].reshape(shape).cpu()

    def save(self, component: str) -> None:
        """Write a checkpoint: noised sums and what was made of them, no state of any noise."""
        if self.collective.rank == 0:
            number, step = self._attempt.number, self._done[self._longest]
            checkpoint = Checkpoint(step, number, component, self._kept, {}, {}, self._head)
            save(self._checkpoints, checkpoint, self._attempt.origin)
            keep_last(self._checkpoints, _KEPT)
