"""Bugs of what comes before the step: numbers taken from private data where public ones belong."""

import numpy as np
import torch

from privacy.class_sums import class_means, noisy_class_sums
from privacy.noise import SecureGaussian
from synth.records import Records
from tests.builders import images_of, records_of
from tests.privacy.planted.bug import Bug

OTHERS_MOVED = "one record changes what is made of the others"
MOVED_TOO_FAR = "one record moves the class means by more than is accounted for"

CLIP_NORM, CLASSES = 2.0, 2
LABELS = np.array([0] + [1] * 19)


def images():
    return np.random.default_rng(0).integers(40, 200, (len(LABELS), 4, 4, 1), dtype=np.uint8)


def preparation_findings(prepare):
    """Put one record to zero and see whether the others come out as before, to the last bit."""
    whole, without = images(), images()
    without[0] = 0
    others = np.arange(1, len(LABELS))
    one, other = (prepare(data, LABELS).take(others)[0] for data in (whole, without))
    return set() if torch.equal(one, other) else {OTHERS_MOVED}


def prepared(data, labels):
    """What training does."""
    return records_of(data, labels)


class Standardised(Records):
    """The usual recipe: subtract the data set's mean, divide by its standard deviation."""

    def take(self, positions):
        images, labels = super().take(positions)
        every = images_of(prepared(self.values.numpy(), self.labels.numpy()))
        return (images - every.mean()) / every.std(), labels


def standardised(data, labels):
    return Standardised(**vars(prepared(data, labels)))


def stretched(data, labels):
    """Stretch the data set's own range to [-1, 1]."""
    low, high = int(data.min()), int(data.max())
    return records_of((data - low) * (255 // max(high - low, 1)), labels)


def means_findings(means):
    """Remove one record under the same noise: class means may move by C / (N / classes)."""
    data = torch.from_numpy(images()).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(LABELS)
    sums = [
        noisy_class_sums(
            data[start:],
            labels[start:],
            CLASSES,
            clip_norm=CLIP_NORM,
            noise_multiplier=1.0,
            noise=SecureGaussian.seeded(3),
        )
        for start in (0, 1)
    ]
    released = [means(total, labels[start:]) for start, total in enumerate(sums)]
    moved = float(torch.linalg.vector_norm(released[0] - released[1]))
    return {MOVED_TOO_FAR} if moved > CLIP_NORM * CLASSES / len(LABELS) * (1 + 1e-9) else set()


def by_public_number(sums, labels):
    return class_means(sums, len(LABELS) / CLASSES)


def by_private_count(sums, labels):
    counts = torch.bincount(labels, minlength=CLASSES).clamp(min=1)
    return sums / counts[:, None, None, None]


BUGS = [
    *(
        Bug(
            f"private mean used for scaling: {name}",
            lambda folder, wrong=wrong: preparation_findings(wrong),
            lambda folder: preparation_findings(prepared),
            (OTHERS_MOVED,),
        )
        for name, wrong in (("data", standardised), ("data, by its range", stretched))
    ),
    Bug(
        "private mean used for scaling: class means",
        lambda folder: means_findings(by_private_count),
        lambda folder: means_findings(by_public_number),
        (MOVED_TOO_FAR,),
    ),
]
