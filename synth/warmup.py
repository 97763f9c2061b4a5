"""Warm-up: a denoiser learns noisy class means before it meets a single record.

One Gaussian mechanism releases the clipped sum of every class (`privacy.class_sums`). Divided by
the public number N / classes they are rough class means, and training on those is post-processing:
free, however long it takes. DP-SGD then starts from a network that knows already what a class
looks like, so that its budget goes into the differences within a class.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from privacy.class_sums import class_means, noisy_class_sums
from privacy.noise import SecureGaussian
from synth.ema import trainable
from synth.loss import DenoisingLoss, draw_views, drop_labels
from synth.preconditioning import Denoiser
from synth.records import Records
from synth.settings import WarmupSettings


def release_class_means(
    records: Records, classes: int, warmup: WarmupSettings, noise: SecureGaussian
) -> Tensor:
    """Query the noisy class means, float32 [classes, C, H, W] in [-1, 1].

    The caller has charged one Gaussian mechanism of `warmup.noise_multiplier` before.
    """
    sums = noisy_class_sums(
        (records.images + 1) / 2,
        records.labels,
        classes,
        clip_norm=warmup.clip_norm,
        noise_multiplier=warmup.noise_multiplier,
        noise=noise,
    )
    # N, which makes the divisor, is public under the zero-out relation.
    means = class_means(sums, len(records) / classes)
    return means.clamp(0, 1).mul(2).sub(1).float()


def train_on_means(
    denoiser: Denoiser,
    means: Tensor,
    warmup: WarmupSettings,
    label_dropout: float,
    generator: torch.Generator,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train `denoiser` in place on released class means [classes, C, H, W]; opens no records."""
    loss = DenoisingLoss(denoiser.preconditioning)
    optimizer = torch.optim.Adam(trainable(denoiser).values(), lr=warmup.learning_rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=warmup.steps)
    classes = len(means)
    for step in range(warmup.steps):
        labels = torch.randint(classes, (warmup.batch,), generator=generator).to(means.device)
        images = means[labels]
        sigma, noise = draw_views(denoiser.preconditioning, images, 1, generator)
        u = torch.rand(warmup.batch, generator=generator)
        labels = drop_labels(labels, classes, label_dropout, u)
        optimizer.zero_grad()
        # One view each of many images: the loss takes them as it takes many views of one.
        loss(denoiser, images, labels, sigma[:, 0], noise[:, 0]).backward()
        optimizer.step()
        falling.step()
        on_progress(step + 1)
