"""Noisy sums of the images of each class, which pretrain a model before DP-SGD."""

import torch
from torch import Tensor

from privacy.clipping import clip_factors
from privacy.collective import Collective, SingleProcess
from privacy.errors import DataError, InvalidRequest
from privacy.noise import SecureGaussian, privatize
from privacy.validation import positive_int, positive_number

_CHUNK = 4096  # records in float64 at a time
_ALONE = SingleProcess()


def noisy_class_sums(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    clip_norm: float,
    noise_multiplier: float,
    noise: SecureGaussian,
    collective: Collective = _ALONE,
) -> Tensor:
    """Return the noisy sum of the clipped images of every class, by one Gaussian mechanism.

    A record (x, y) adds clip(x, C), whose L2 norm is at most C, to block y of the released vector
    in R^(classes d), and nothing to any other block. So the L2 sensitivity of all classes together
    is C, not C sqrt(classes), and N(0, sigma**2 C**2) on every coordinate, also in classes without
    a record, is `Gaussian(noise_multiplier=sigma, steps=1)`. How many records a class has is
    neither used nor released.

    Args:
        images: [n, channels, height, width], the records of this worker: a float type, scaled to
            [0, 1] by their type, or uint8, which is scaled here.
        labels: int64 [n] in [0, classes), whose number is public.
        clip_norm: C, the L2 norm to which an image is scaled down.
        noise_multiplier: sigma; like C it is positive.
        noise: only rank 0's is used.
        collective: the other workers; every record has one owner.

    Returns:
        float64 [classes, channels, height, width] on the images' device, the same on every worker.
        A record that is not finite adds nothing.

    Raises:
        InvalidRequest: if a shape, a type or a parameter is not as above.
        DataError: if a label is outside [0, classes).
    """
    _check(images, labels, classes)
    sums = torch.zeros(classes, images.shape[1:].numel(), dtype=torch.float64, device=images.device)
    for start in range(0, len(images), _CHUNK):
        x = images[start : start + _CHUNK].flatten(1).to(torch.float64)
        if images.dtype == torch.uint8:
            x /= 255
        factors = clip_factors(torch.linalg.vector_norm(x, dim=1), clip_norm)[:, None]
        sums.index_add_(0, labels[start : start + _CHUNK], torch.where(factors > 0, x, 0) * factors)
    shaped = {"classes": sums.reshape(classes, *images.shape[1:])}
    # Once, and before the sum over workers, so that the whole sum never exists without it.
    if collective.rank == 0:
        shaped = privatize(shaped, clip_norm, noise_multiplier, noise)
    return collective.sum(shaped)["classes"]


def class_means(sums: Tensor, expected_per_class: float) -> Tensor:
    """Divide noisy class sums by the public number of records expected in a class, N / classes."""
    # Never by a count: the sums' sensitivity does not bound a quotient of two private numbers.
    return sums / positive_number("the expected number of records of a class", expected_per_class)


def _check(images: Tensor, labels: Tensor, classes: int) -> None:
    if images.ndim != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
        found = f"{images.ndim} dimensions of {images.dtype}"
        expected = "floats or uint8 [n, channels, height, width]"
        raise InvalidRequest(f"images must be {expected}, found {found}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        found = f"{labels.ndim} dimensions of {labels.dtype}"
        raise InvalidRequest(f"labels must be int64, one for each image, found {found}")
    positive_int("the number of classes", classes)
    if len(labels) and not bool(((labels >= 0) & (labels < classes)).all()):
        advice = "make the spec's class list cover the labels"
        raise DataError(f"a label is outside [0, {classes}); {advice}")
