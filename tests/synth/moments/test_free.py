"""What costs nothing: tone curves, warps, candidates, the teacher's descent and labels."""

import pytest
import torch

from synth.moments import candidates, teacher, tone
from synth.moments.model import MomentsModel
from synth.moments.warps import warp
from synth.scattering import Scattering


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestTone:
    def test_fractions_sum_to_one_and_are_of_the_image(self):
        x = torch.tensor([0.0, 0.01, 0.999, 1.0]).reshape(1, 1, 2, 2)
        shares = tone.fractions(x)
        assert float(shares.sum()) == pytest.approx(1)
        assert shares[0, 0] == shares[0, 63] == 0.5

    @pytest.mark.parametrize("channels", [1, 3])
    def test_no_record_has_a_norm_above_one(self, channels):
        x = torch.rand(50, channels, 6, 6, generator=generator())
        x[0], x[1] = 0, 1
        assert tone.fractions(x).norm(dim=1).max() <= 1

    def test_curve_maps_quantiles_to_quantiles(self):
        """Uniform pixels and a histogram of squares: x goes to x^2."""
        private = torch.rand(200_000, generator=generator()).square()
        histogram = tone.fractions(private.reshape(1, 1, 1, -1))[0]
        levels = tone.curve(1000 * histogram, torch.rand(100_000, generator=generator(1)))
        grid = torch.linspace(0, 1, 257).double()
        assert torch.allclose(levels, grid.square(), atol=0.02)
        assert bool((levels.diff() >= 0).all())

    def test_noise_and_an_empty_histogram_give_a_rising_curve(self):
        for noisy in (torch.zeros(64), torch.randn(64, generator=generator())):
            levels = tone.curve(noisy.double(), torch.rand(500, generator=generator(1)))
            assert bool((levels.diff() >= 0).all())
            assert 0 <= float(levels[0]) <= float(levels[-1]) <= 1

    def test_half_of_the_images_are_toned(self):
        x = torch.full((400, 1, 2, 2), 0.5)
        found = tone.toned(x, torch.linspace(0, 1, 257).square(), generator())
        values, counts = found.unique(return_counts=True)
        assert values.tolist() == pytest.approx([0.25, 0.5], abs=1e-3)
        assert 140 < int(counts[0]) / 4 < 260
        assert bool((x == 0.5).all())


class TestWarps:
    def test_no_strength_changes_nothing(self):
        x = torch.rand(3, 1, 8, 8, generator=generator())
        assert torch.equal(warp(x, 0.0, generator()), x)

    @pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28), (1, 64)])
    def test_moves_images_each_in_its_own_way(self, channels, size):
        x = torch.rand(1, channels, size, size, generator=generator())
        x = torch.nn.functional.avg_pool2d(x, 5, 1, 2).expand(6, -1, -1, -1)
        found = warp(x, 1.0, generator())
        assert found.shape == x.shape
        assert float(found.min()) >= float(x.min())
        assert float(found.max()) <= float(x.max())
        assert len({tuple(image.flatten().tolist()) for image in found}) == 6
        near = warp(x, 0.1, generator())
        assert (near - x).norm() < 0.5 * (found - x).norm()

    def test_on_average_nothing_moves(self):
        """A spot's centre, over many warps."""
        x = torch.zeros(3000, 1, 28, 28)
        x[:, :, 12:16, 12:16] = 1
        found = warp(x, 1.0, generator()).mean((0, 1))
        place = torch.arange(28).float()
        for profile in (found.sum(0), found.sum(1)):
            assert float((profile * place).sum() / profile.sum()) == pytest.approx(13.5, abs=0.15)


class TestTeacher:
    def test_features_are_bounded_and_white_on_synthetic_images(self):
        x = torch.rand(300, 1, 8, 8, generator=generator()) * 2 - 1
        space = teacher.FeatureSpace.of(Scattering(1, 8), x)
        f = space(x)
        assert f.shape == (300, space.dimension)
        assert f[:, :-1].norm(dim=1).max() <= teacher.MAX_NORM * (1 + 1e-5)
        assert float(f[:, :-1].square().sum(1).mean()) == pytest.approx(1, abs=0.1)

    def test_descent_without_noise_reaches_the_minimum(self):
        g = generator(3)
        target = torch.randn(2, 5, generator=g, dtype=torch.float64)
        descent = teacher.Descent(torch.zeros(2, 5).double(), 200, 0.5)
        for _ in range(200):
            descent.take(descent.weights - target)
        assert torch.allclose(descent.result, target, atol=1e-2)

    def test_descent_goes_on_where_it_was(self):
        g, steps = generator(4), 12
        gradients = torch.randn(steps, 2, 5, generator=g, dtype=torch.float64)
        whole = teacher.Descent(torch.zeros(2, 5).double(), steps, 0.1)
        for gradient in gradients:
            whole.take(gradient)
        first, second = (teacher.Descent(torch.zeros(2, 5).double(), steps, 0.1) for _ in "ab")
        for gradient in gradients[:8]:
            first.take(gradient)
        second.restore(first.state())
        for gradient in gradients[8:]:
            second.take(gradient)
        assert torch.equal(second.result, whole.result)
        assert second.steps_taken == steps

    def test_offsets_make_classes_equally_many(self):
        logits = torch.randn(6000, 5, generator=generator()) + torch.tensor([2.0, 0, 0, -1, 0])
        said = teacher.Labels.of(logits.double(), torch.arange(6000) % 5)
        shares = said.labels.bincount(minlength=5) / 6000
        assert torch.allclose(shares, torch.full((5,), 0.2), atol=0.02)
        assert torch.allclose(said.agreement.sum(1), torch.ones(5).double())


def test_candidates_learn_and_are_judged():
    g = generator(5)
    labels = torch.arange(600) % 2
    images = torch.rand(600, 3, 8, 8, generator=g) - 1 + labels[:, None, None, None]
    weights = candidates.train(images, labels, 2, g)
    chunks = zip(images.split(100), labels.split(100), strict=True)
    right = torch.cat(list(candidates.right_answers([weights, weights], chunks, (3, 8, 8), 2)))
    assert right.shape == (600, 2)
    assert right.dtype == torch.bool
    assert float(right.float().mean()) > 0.95


class TestLabelledDraws:
    @pytest.fixture
    def model(self):
        """A teacher that says of a dark image 1 and of a bright one 0, whatever it is drawn for."""
        model = MomentsModel(1, 8, 2)
        F = Scattering(1, 8).features
        space = teacher.FeatureSpace(Scattering(1, 8), torch.zeros(F), torch.zeros(F, 1))
        agreement = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
        model.put_teacher(space, torch.zeros(2, 2), torch.zeros(2), agreement)

        def said(images, drawn_for):
            return (images.mean((1, 2, 3)) < 0).long()

        model._labelled = said
        return model

    @pytest.mark.parametrize("labels", [torch.arange(500) % 2, torch.ones(300, dtype=torch.int64)])
    def test_images_have_the_label_that_the_teacher_gives(self, model, labels):
        images = model.draw(labels, generator(1))
        assert torch.equal(model._labelled(images, labels), labels)
        assert torch.equal(images, model.draw(labels, generator(1)))

    def test_a_label_that_is_never_given_is_drawn_all_the_same(self, model):
        model._labelled = lambda images, drawn_for: torch.zeros(len(images), dtype=torch.int64)
        images = model.draw(torch.ones(5, dtype=torch.int64), generator(1))
        assert bool(images.isfinite().all())
