"""The private records in memory, and the views that a step takes of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from privacy.keystream import derive, words_at
from synth.denoisers import DenoiserConfig
from synth.loss import draw_views, drop_labels
from synth.shards import from_uint8

_DOMAIN = "umbra/views/1"


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
    def from_uint8(cls, images: np.ndarray, labels: np.ndarray, device: torch.device) -> "Records":
        """Scale images [N, H, W, C] by their type and put all on `device`."""
        return cls(from_uint8(images).to(device), torch.from_numpy(labels).to(device))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ViewDrawer:
    """Draws a record's K noised views and drops its label, as a function of (key, step, record).

    Nothing depends on which worker asks, so a step is the same step however many workers take it
    (on one type of device: a GPU's generator gives other numbers than a processor's). These draws
    need no privacy (they are no part of the mechanism); they share its key derivation for being
    reproducible exactly when masks are.

    Attributes:
        config: gives p(sigma).
        K: noise multiplicity.
        label_dropout: probability with which a record's label is replaced by `null`.
        null: index of the label "none".
        key: 32 bytes, secret like the masks' key.
        attempt: which attempt of the run this is.
    """

    config: DenoiserConfig
    K: int
    label_dropout: float
    null: int
    key: bytes = field(repr=False)
    attempt: int = 0

    def for_step(
        self, step: int, records: Records, record_ids: np.ndarray
    ) -> Callable[[np.ndarray], tuple[Tensor, ...]]:
        """Return the function from positions in `record_ids` to (image, label, sigma, noise)."""
        seeds = words_at(derive(self.key, _DOMAIN, self.attempt, step), record_ids)

        def gather(positions: np.ndarray) -> tuple[Tensor, ...]:
            ids = torch.from_numpy(record_ids[positions]).to(
                records.labels.device, non_blocking=True
            )
            images, labels = records.images[ids], records.labels[ids]
            drawn = [
                self._draw(images[i : i + 1], labels[i : i + 1], int(seeds[position]))
                for i, position in enumerate(positions)
            ]
            labels, sigma, noise = (torch.cat(part) for part in zip(*drawn, strict=True))
            return images, labels, sigma, noise

        return gather

    def _draw(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        # Where the images are: a GPU draws while it is handed the next record's, and nothing has to
        # be carried to it. torch takes seeds below 2**63 without wrapping.
        generator = torch.Generator(image.device).manual_seed(seed >> 1)
        label = drop_labels(label, self.null, self.label_dropout, generator)
        return label, *draw_views(self.config, image, self.K, generator)
