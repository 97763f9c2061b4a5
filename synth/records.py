"""The private records in memory, and the views that a step takes of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from privacy.keystream import derive, words_at
from privacy.records import LabelledRecords
from privacy.validation import positive_int
from synth.counter_based import normal, uniform
from synth.data.shards import from_uint8
from synth.loss import drop_labels, form_views
from synth.preconditioning import Preconditioning

_DOMAIN = "umbra/views/2"
# Streams of a record's seed.
_LABEL, _SIGMA, _NOISE = range(3)


@dataclass(frozen=True)
class Records:
    """Private images and their labels; the repr shows nothing of them.

    Attributes:
        images: [N, C, H, W] float32 in [-1, 1].
        labels: [N] int64.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise InvalidRequest("records must be images [N, C, H, W] with a label each")

    @classmethod
    def of(cls, records: LabelledRecords, device: torch.device) -> "Records":
        """Scale images [N, H, W, C] by their type and put all on `device`."""
        labels = torch.from_numpy(records.labels)
        return cls(from_uint8(records.values).to(device), labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class NoisedViews:
    """Draws a record's K noised views and drops its label, as a function of (key, step, record).

    Nothing depends on which worker asks, in which micro-batch, or on what device but for last bits,
    so a step is the same step however many workers take it. These draws need no privacy (they are
    no part of the mechanism); they share its key derivation for being reproducible exactly when
    masks are.

    Attributes:
        preconditioning: has the noise distribution p(sigma).
        K: noise multiplicity.
        label_dropout: probability with which a record's label is replaced by `null`.
        null: index of the label "none".
        key: 32 bytes, secret like the masks' key.
        attempt: which attempt of the run this is.

    Raises:
        InvalidRequest: K is not a positive integer.
    """

    preconditioning: Preconditioning
    K: int
    label_dropout: float
    null: int
    key: bytes = field(repr=False)
    attempt: int = 0

    def __post_init__(self) -> None:
        positive_int("noise multiplicity K", self.K)

    def for_step(
        self, step: int, records: Records, record_ids: np.ndarray
    ) -> Callable[[np.ndarray], tuple[Tensor, ...]]:
        """Return the function from positions in `record_ids` to (image, label, sigma, noise).

        It draws for all its records at once, where they are, and waits for nothing there.
        """
        words = words_at(derive(self.key, _DOMAIN, self.attempt, step), record_ids)
        seeds = words.view(np.int64)

        def gather(positions: np.ndarray) -> tuple[Tensor, ...]:
            ids_B, seeds_B = (
                torch.from_numpy(owned[positions]).to(records.labels.device, non_blocking=True)
                for owned in (record_ids, seeds)
            )
            images, labels = records.images[ids_B], records.labels[ids_B]
            sigma, noise = form_views(
                self.preconditioning,
                uniform(seeds_B, _SIGMA, (self.K,)),
                normal(seeds_B, _NOISE, (self.K, *images.shape[1:])),
            )
            u_B = uniform(seeds_B, _LABEL, ())
            return images, drop_labels(labels, self.null, self.label_dropout, u_B), sigma, noise

        return gather
