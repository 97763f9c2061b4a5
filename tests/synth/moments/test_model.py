"""The model's samples and posterior means against integration, sampling and their limits."""

import math

import pytest
import torch
from safetensors.torch import load, save

from synth.moments.lowpass import Lowpass
from synth.moments.mixture import Mixture, Subspace
from synth.moments.model import Exact, MomentsModel
from synth.preconditioning import Denoiser
from synth.samplers import sampler
from synth.samplers.base import guided


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(channels, size, kept, r, K, classes=2, seed=0):
    """A model with random parts, of moderate pixels, so that nothing is clamped."""
    g, q = generator(seed), Lowpass(channels, size, kept).dimension
    basis, _ = torch.linalg.qr(torch.randn(q, r, generator=g, dtype=torch.float64))
    factors = 0.08 * torch.randn(classes, K, r, r, generator=g, dtype=torch.float64)
    outside = 0.003 * torch.rand(q, generator=g, dtype=torch.float64)
    model = MomentsModel(channels, size, classes)
    model.put(
        0.1 * torch.randn(classes, q, generator=g, dtype=torch.float64),
        Subspace(basis, torch.ones(r), outside),
        Mixture(
            torch.rand(classes, K, generator=g, dtype=torch.float64) + 0.1,
            0.15 * torch.randn(classes, K, r, generator=g, dtype=torch.float64),
            factors @ factors.mT,
        ),
    )
    model.weights /= model.weights.sum(1, keepdim=True)
    return model


def components_in_pixels(model, y):
    """Weights, means and covariances of class y's components over x in [-1, 1], by the book."""
    eye = torch.eye(model.means.shape[1], dtype=torch.float64)
    P = model.lowpass.inverse(eye).flatten(1)
    U = model.basis.double()
    left = eye - U @ U.T
    outside = left @ torch.diag(model.outside.double()) @ left
    for weight, centre, covariance in zip(
        model.weights[y], model.centres[y].double(), model.covariances[y].double(), strict=True
    ):
        mean = 2 * (model.means[y].double() + U @ centre) @ P
        yield float(weight), mean, 4 * P.T @ (U @ covariance @ U.T + outside) @ P


def posterior_by_the_book(model, x, sigma, y):
    d = x.numel()
    logs, means = [], []
    for weight, mean, covariance in components_in_pixels(model, y):
        total = covariance + sigma**2 * torch.eye(d)
        gaussian = torch.distributions.MultivariateNormal(mean, total)
        logs.append(math.log(weight) + float(gaussian.log_prob(x)))
        means.append(mean + covariance @ torch.linalg.solve(total, x - mean))
    share = torch.tensor(logs).softmax(0).double()
    return sum(s * m for s, m in zip(share, means, strict=True))


class TestPosteriorMean:
    @pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
    def test_equals_numerical_integration_in_two_dimensions(self, sigma):
        """An image of 1 pixel and 2 channels... of which the density is integrated on a grid."""
        model = MomentsModel(2, 1, 1)
        covariances = torch.tensor([[[[0.02, 0.01], [0.01, 0.03]], [[0.05, 0], [0, 0.01]]]])
        model.put(
            torch.tensor([[0.1, -0.05]]).double(),
            Subspace(torch.eye(2).double(), torch.ones(2), torch.zeros(2).double()),
            Mixture(
                torch.tensor([[0.3, 0.7]]), torch.tensor([[[0.2, 0.1], [-0.3, 0.0]]]), covariances
            ),
        )
        axis = torch.linspace(-3, 3, 601, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        density = sum(
            weight * torch.distributions.MultivariateNormal(mean, cov).log_prob(grid).exp()
            for weight, mean, cov in components_in_pixels(model, 0)
        )
        for x in torch.tensor([[0.4, -0.3], [-0.9, 0.5], [0.0, 0.1]]).double():
            likelihood = torch.exp(-(grid - x).square().sum(1) / (2 * sigma**2))
            weights = density * likelihood
            expected = (weights[:, None] * grid).sum(0) / weights.sum()
            found = model(
                x.reshape(1, 2, 1, 1), torch.full((1,), sigma).double(), torch.tensor([0])
            )
            assert torch.allclose(found.flatten(), expected, atol=2e-4)

    def test_equals_sampling_in_twenty_dimensions(self):
        """E[x | x + sigma n] minimises the error: regression of x on its features has none left."""
        model, sigma, n = model_of(5, 2, 2, r=3, K=3), 0.4, 40_000
        g = generator(2)
        parts = list(components_in_pixels(model, 1))
        which = torch.multinomial(torch.tensor([p[0] for p in parts]), n, True, generator=g)
        x = torch.zeros(n, 20, dtype=torch.float64)
        for index, (_, mean, covariance) in enumerate(parts):
            root = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(20))
            noise = torch.randn(int((which == index).sum()), 20, generator=g, dtype=torch.float64)
            x[which == index] = mean + noise @ root.T
        noisy = x + sigma * torch.randn(n, 20, generator=g, dtype=torch.float64)
        labels = torch.ones(n, dtype=torch.int64)
        found = model(noisy.reshape(n, 5, 2, 2), torch.full((n,), sigma), labels).flatten(1)
        errors = x - found
        # Unbiased and uncorrelated with any function of what was seen.
        features = torch.cat([torch.ones(n, 1), noisy, noisy.square(), found.tanh()], 1).double()
        features /= features.square().mean(0).sqrt()
        means = (features.T @ errors / n) / (errors.std(0) / math.sqrt(n))
        assert means.abs().max() < 5
        # Another sigma is not the posterior mean of this one.
        other = model(noisy.reshape(n, 5, 2, 2), torch.full((n,), 1.5 * sigma), labels).flatten(1)
        assert (x - other).square().mean() > errors.square().mean() * 1.01

    @pytest.mark.parametrize("y", [0, 1])
    @pytest.mark.parametrize("sigma", [0.01, 0.2, 3.0])
    def test_equals_the_closed_form_in_pixels(self, sigma, y):
        model = model_of(3, 4, 3, r=4, K=3)
        x = 0.5 * torch.randn(3, 4, 4, generator=generator(1), dtype=torch.float64)
        found = model(x[None], torch.tensor([sigma]).double(), torch.tensor([y]))
        expected = posterior_by_the_book(model, x.flatten(), sigma, y)
        assert torch.allclose(found.flatten(), expected, atol=1e-6)

    def test_no_label_is_the_mixture_of_all_classes(self):
        """By a model of one class that holds the components of both."""
        model = model_of(1, 4, 4, r=3, K=2, seed=4)
        model.means[1] = model.means[0]
        both = MomentsModel(1, 4, 1)
        both.put(
            model.means[:1],
            Subspace(model.basis, torch.ones(3), model.outside),
            Mixture(
                model.weights.reshape(1, 4) / 2,
                model.centres.reshape(1, 4, 3),
                model.covariances.reshape(1, 4, 3, 3),
            ),
        )
        x = torch.randn(5, 1, 4, 4, generator=generator(7), dtype=torch.float64)
        sigma = torch.tensor([0.01, 0.1, 0.5, 1, 4]).double()
        expected = both(x, sigma, torch.zeros(5, dtype=torch.int64))
        assert torch.allclose(model(x, sigma, torch.full((5,), 2)), expected, atol=1e-6)
        assert torch.equal(model(x, sigma), model(x, sigma, torch.full((5,), 2)))

    def test_limits(self):
        """Without noise the image itself, as far as the model can make it; with much, the mean."""
        model = model_of(1, 4, 4, r=3, K=2)
        labels = torch.tensor([0, 1, 0])
        x = 2 * model.draw_plain(labels, generator(3)).double() - 1
        near = model(x, torch.full((3,), 1e-4).double(), labels)
        assert torch.allclose(near, x, atol=1e-3)
        far = model(x, torch.full((3,), 1e5).double(), labels)
        for image, y in zip(far, labels.tolist(), strict=True):
            mean = sum(w * m for w, m, _ in components_in_pixels(model, y))
            assert torch.allclose(image.flatten(), mean, atol=1e-4)


class TestDraw:
    def test_has_the_mean_and_covariance_of_the_mixture(self):
        model, n = model_of(1, 4, 4, r=3, K=2), 60_000
        x = model.draw(torch.ones(n, dtype=torch.int64), generator(5)).flatten(1).double()
        parts = list(components_in_pixels(model, 1))
        mean = sum(w * m for w, m, _ in parts)
        covariance = sum(w * (c + torch.outer(m - mean, m - mean)) for w, m, c in parts)
        assert torch.allclose(x.mean(0), mean, atol=0.01)
        assert torch.allclose(torch.cov(x.T), covariance, atol=0.01)

    def test_is_a_function_of_its_generator(self):
        model, labels = model_of(3, 8, 5, r=4, K=3), torch.tensor([0, 1, 1, 0])
        model.warps.fill_(1.0)
        model.tone = torch.linspace(0, 1, 257).square()
        one, same, other = (model.draw(labels, generator(s)) for s in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert float(one.min()) >= -1
        assert float(one.max()) <= 1

    def test_any_class_and_none_at_all(self):
        model = model_of(1, 8, 5, r=4, K=3)
        assert model.draw(torch.zeros(0, dtype=torch.int64), generator()).shape == (0, 1, 8, 8)

    @pytest.mark.parametrize("name", ["ddim", "churn"])
    def test_samplers_on_its_denoiser_agree_with_it(self, name):
        """Moments of 3,000 images by a sampler against those of the model itself."""
        model = model_of(1, 4, 4, r=2, K=2, seed=3)
        settings = {"s_churn": 0.0} if name == "churn" else {}
        denoise = guided(Denoiser(model, Exact()), 0.0)
        labels = torch.zeros(3000, dtype=torch.int64)
        x = sampler(name, steps=40, **settings).sample(denoise, labels, (1, 4, 4), generator(8))
        own = model.draw(labels, generator(9)).double()
        assert torch.allclose(x.mean(0), own.mean(0), atol=0.03)
        assert torch.allclose(x.std(0), own.std(0), atol=0.03)


class TestFile:
    def test_a_fresh_model_takes_the_shapes_of_a_file(self):
        model = model_of(3, 8, 5, r=4, K=3)
        model.tone = torch.linspace(0, 1, 257)
        saved = save(Denoiser(model, Exact()).state_dict())
        fresh = Denoiser(MomentsModel(3, 8, 2), Exact())
        x, sigma, y = torch.randn(2, 3, 8, 8), torch.ones(2), torch.tensor([0, 1])
        before = fresh(x, sigma, y)
        fresh.load_state_dict(load(saved))
        assert torch.equal(fresh(x, sigma, y), Denoiser(model, Exact())(x, sigma, y))
        assert not torch.equal(fresh(x, sigma, y), before)
        labels = torch.tensor([1, 0, 1])
        assert torch.equal(fresh.network.draw(labels, generator()), model.draw(labels, generator()))

    def test_a_file_without_a_part_is_refused(self):
        state = Denoiser(model_of(1, 8, 5, r=4, K=3), Exact()).state_dict()
        del state["network.means"]
        with pytest.raises(RuntimeError, match=r"network\.means"):
            Denoiser(MomentsModel(1, 8, 2), Exact()).load_state_dict(state)
