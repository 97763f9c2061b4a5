import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from privacy.collective import SingleProcess
from privacy.errors import DataError
from privacy.noise import SecureGaussian
from synth.preconditioning import EDM, Denoiser, DenoisingLoss, draw_views
from synth.records import Records
from synth.settings import WarmupSettings
from synth.training import release_class_means, train_on_means
from tests.builders import images_of, part_of, records_of

CLASSES, SIZE = 3, 4
WARMUP = WarmupSettings(noise_multiplier=0.6, clip_norm=1.5, steps=40, batch=16, learning_rate=0.02)
TINY = 1e-12


class Network(nn.Module):
    """F(x; c_noise, y): one image for every label, one more for none."""

    def __init__(self):
        super().__init__()
        self.labels = nn.Embedding(CLASSES + 1, SIZE * SIZE)
        nn.init.zeros_(self.labels.weight)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x, c_noise, label):
        return self.scale * x + self.labels(label).reshape(-1, 1, SIZE, SIZE)


def make_records(n=20, classes=CLASSES):
    generator = np.random.default_rng(5)
    images = generator.integers(0, 256, (n, SIZE, SIZE, 1), dtype=np.uint8)
    return records_of(images, generator.integers(0, classes, n))


def means_of(records, warmup=WARMUP, seed=1):
    noise = SecureGaussian.seeded(seed)
    return release_class_means(records, CLASSES, warmup, noise, SingleProcess())


class TestReleaseClassMeans:
    def test_is_the_clipped_noised_sum_over_a_public_number(self):
        records, n = make_records(), 20
        sums = np.zeros((CLASSES, SIZE * SIZE))
        for image, label in zip(images_of(records), records.labels, strict=True):
            x = (image.double().numpy().ravel() + 1) / 2
            sums[label] += x * min(1.0, WARMUP.clip_norm / math.sqrt((x**2).sum()))
        noise = SecureGaussian.seeded(1).gaussian((CLASSES, 1, SIZE, SIZE), 0.6 * 1.5)
        means = (sums + noise.numpy().reshape(CLASSES, -1)) / (n / CLASSES)
        expected = np.clip(means, 0, 1) * 2 - 1
        found = means_of(records)
        assert found.shape == (CLASSES, 1, SIZE, SIZE)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.reshape(CLASSES, -1), expected, atol=1e-6)

    def test_a_class_without_records_is_noised_like_any_other(self):
        """Else an empty class would show by its silence."""
        size = 60
        dark = records_of(np.zeros((8, size, size, 1), np.uint8), np.zeros(8, np.int64))
        # Noise of 0.1 in units of the mean: seen where it is not cut off, that is above zero.
        warmup = WarmupSettings(
            noise_multiplier=0.1 * 8 / CLASSES, clip_norm=1.0, steps=1, batch=1, learning_rate=0.1
        )
        means = (means_of(dark, warmup).double() + 1) / 2 / 0.1
        for mean in means:
            assert (mean == 0).double().mean() == pytest.approx(0.5, abs=0.05)
            assert stats.kstest(mean[mean > 0].numpy(), "halfnorm").pvalue > 1e-6

    def test_the_divisor_does_not_look_at_the_labels(self):
        """Twelve equal records: their class's mean is 12 over 20 / 3, not 12 over 12."""
        images = np.zeros((20, 2, 2, 1), np.uint8)
        images[:12] = 51  # a fifth of 255
        means = means_of(
            records_of(images, np.array([0] * 12 + [1] * 8)),
            WarmupSettings(
                noise_multiplier=TINY, clip_norm=10.0, steps=1, batch=1, learning_rate=0.1
            ),
        )
        torch.testing.assert_close((means[0] + 1) / 2, torch.full((1, 2, 2), 12 * 0.2 / (20 / 3)))

    def test_a_record_that_is_missing_is_as_one_that_is_black(self):
        """N stays the divisor: zeroed out, in the images' own scale."""
        records = make_records()
        values = records.values.clone()
        values[3] = 0  # zero in [0, 1]
        black = Records(values, records.labels, records.ids, records.total)
        missing = part_of(records, np.delete(np.arange(20), 3))
        assert torch.equal(means_of(missing), means_of(black))

    def test_a_label_out_of_range_is_refused_without_being_named(self):
        records = make_records(classes=17)
        with pytest.raises(DataError) as refusal:
            means_of(records)
        assert str(int(records.labels.max())) not in str(refusal.value)


class TestTrainOnMeans:
    @pytest.fixture
    def means(self):
        return means_of(make_records())

    def trained(self, means, warmup=WARMUP, seed=2, dropout=0.1, **more):
        denoiser = Denoiser(Network(), EDM())
        generator = torch.Generator().manual_seed(seed)
        train_on_means(denoiser, means, warmup, dropout, generator, **more)
        return denoiser

    def test_learns_the_means(self, means):
        def loss(denoiser):
            generator = torch.Generator().manual_seed(9)
            labels = torch.arange(CLASSES).repeat(30)
            sigma, noise = draw_views(EDM(), means[labels], 1, generator)
            with torch.no_grad():
                value = DenoisingLoss(EDM())(
                    denoiser, means[labels], labels, sigma[:, 0], noise[:, 0]
                )
            return float(value)

        trained = self.trained(means)
        assert loss(trained) < 0.85 * loss(Denoiser(Network(), EDM()))
        # Each label's image has become its own class's mean and no other's.
        images = trained.network.labels.weight.detach()[:CLASSES]
        among = torch.corrcoef(torch.cat([images, means.flatten(1)]))[:CLASSES, CLASSES:]
        assert among.argmax(dim=1).tolist() == list(range(CLASSES))
        assert among.diagonal().min() > 0.7

    def test_equals_a_naive_loop(self, means):
        """Adam under a rate that falls linearly; every image is a record with one view."""
        warmup, seed = (
            WarmupSettings(
                noise_multiplier=1.0, clip_norm=1.0, steps=6, batch=5, learning_rate=0.05
            ),
            3,
        )
        denoiser, generator = Denoiser(Network(), EDM()), torch.Generator().manual_seed(seed)
        adam = torch.optim.Adam(denoiser.parameters())
        for step in range(6):
            labels = torch.randint(CLASSES, (5,), generator=generator)
            sigma, noise = draw_views(EDM(), means[labels], 1, generator)
            shown = torch.where(torch.rand(5, generator=generator) < 0.4, CLASSES, labels)
            total = sum(
                DenoisingLoss(EDM())(denoiser, means[labels[i]], shown[i], sigma[i], noise[i])
                for i in range(5)
            )
            adam.param_groups[0]["lr"] = 0.05 * (1 - step / 6)
            adam.zero_grad()
            (total / 5).backward()
            adam.step()
        found = self.trained(means, warmup, seed, dropout=0.4)
        for name, parameter in found.state_dict().items():
            torch.testing.assert_close(parameter, denoiser.state_dict()[name])

    def test_teaches_what_no_label_means_only_if_labels_are_dropped(self, means):
        null = [
            self.trained(means, dropout=dropout).network.labels.weight[CLASSES].detach()
            for dropout in (0.0, 0.5)
        ]
        assert torch.equal(null[0], torch.zeros_like(null[0]))
        assert null[1].abs().min() > 0

    def test_is_a_function_of_its_generator(self, means):
        one, same, other = (self.trained(means, seed=s).state_dict() for s in (1, 1, 2))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)

    def test_says_how_far_it_is(self, means):
        done = []
        self.trained(means, on_progress=done.append)
        assert done == list(range(1, 41))

    def test_no_steps_change_nothing(self, means):
        before = copy.deepcopy(Denoiser(Network(), EDM()).state_dict()["network.labels.weight"])
        after = self.trained(
            means,
            WARMUP.model_copy(update={"steps": 0}),
        ).state_dict()
        assert torch.equal(after["network.labels.weight"], before)
