import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import optimize, stats
from torch import nn

from privacy.errors import InvalidRequest
from synth.preconditioning import EDM, PRECONDITIONINGS, VE, VP, Denoiser, V

# Standard deviation of the data for which each config's input and target have unit variance.
SIGMA_DATA = {"vp": 1.0, "ve": None, "v": 1.0, "edm": math.sqrt(1 / 3)}

every = pytest.mark.parametrize(
    "config", [c() for c in PRECONDITIONINGS.values()], ids=list(PRECONDITIONINGS)
)


@pytest.fixture
def sigma() -> torch.Tensor:
    return torch.logspace(-3, 2, 101, dtype=torch.float64)


class Returns(nn.Module):
    """A raw network that gives one fixed answer and remembers what it was asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple] = []

    def forward(self, x, c_noise, label):
        self.asked.append((x, c_noise, label))
        return self.answer


@pytest.mark.parametrize(
    ("name", "expected"),
    # c_skip, c_out, c_in, c_noise, weight at sigma = 0.5, worked out with mpmath from the table.
    [
        ("vp", (1, -0.5, 0.8944271909999159, 144.669105620279291, 4)),
        ("ve", (1, 0.5, 1, -1.3862943611198906, 4)),
        ("v", (0.8, 0.4472135954999579, 0.8944271909999159, 0.2951672353008665, 5)),
        ("edm", (4 / 7, 0.3779644730092272, 1.3093073414159542, -0.17328679513998632, 7)),
    ],
)
def test_table(name, expected):
    config, sigma = PRECONDITIONINGS[name](), torch.tensor(0.5, dtype=torch.float64)
    found = [
        f(sigma).item()
        for f in (config.c_skip, config.c_out, config.c_in, config.c_noise, config.weight)
    ]
    assert found == pytest.approx(expected, rel=1e-12)


@every
def test_functions_keep_shape_and_dtype(config):
    for sigma in (torch.full((2, 3), 0.7), torch.full((4,), 0.7, dtype=torch.float64)):
        for f in (config.c_skip, config.c_out, config.c_in, config.c_noise, config.weight):
            assert f(sigma).shape == sigma.shape
            assert f(sigma).dtype == sigma.dtype


@every
def test_weight_evens_out_the_levels(config, sigma):
    """lambda c_out^2 = 1: at the start every level weighs the same in the loss."""
    torch.testing.assert_close(
        config.weight(sigma) * config.c_out(sigma) ** 2, torch.ones_like(sigma)
    )


@every
def test_input_and_target_have_unit_variance(config, sigma):
    """For data of standard deviation s: c_in (x + n) and (x - c_skip (x + n)) / c_out."""
    s = SIGMA_DATA[config.name]
    c_skip, c_out = config.c_skip(sigma), config.c_out(sigma)
    target = ((1 - c_skip) ** 2 * (s or 1.0) ** 2 + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(target, torch.ones_like(sigma))
    if s is not None:
        variance = config.c_in(sigma) ** 2 * (s**2 + sigma**2)
        torch.testing.assert_close(variance, torch.ones_like(sigma))


@every
def test_denoiser_of_the_ideal_target_gives_the_image_back(config):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand((3, 1, 4, 4), generator=generator, dtype=torch.float64) * 2 - 1
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    x = x0 + sigma[:, None, None, None] * torch.randn(x0.shape, generator=generator).double()
    c_skip, c_out = (c(sigma)[:, None, None, None] for c in (config.c_skip, config.c_out))
    network, label = Returns((x0 - c_skip * x) / c_out), torch.tensor([0, 1, 2])
    torch.testing.assert_close(Denoiser(network, config)(x, sigma, label), x0, rtol=0, atol=1e-9)
    seen, c_noise, passed = network.asked[0]
    torch.testing.assert_close(seen, config.c_in(sigma)[:, None, None, None] * x)
    torch.testing.assert_close(c_noise, config.c_noise(sigma))
    assert passed is label


def test_score_of_vp_and_v():
    """(D - x)/sigma^2 is -F/sigma for VP, and -(alpha v + sigma' x')/sigma' for v-prediction."""
    generator = torch.Generator().manual_seed(0)
    x, F = torch.randn((2, 3, 1, 2, 2), generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    s = sigma[:, None, None, None]

    score = (Denoiser(Returns(F), VP())(x, sigma) - x) / s**2
    torch.testing.assert_close(score, -F / s)

    # In variance-preserving terms: alpha = cos, sigma' = sin, x' = alpha x, v = alpha eps - sin x0.
    # The network of the table predicts -v, so that c_out may be positive.
    angle = torch.atan(s)
    alpha, sin = angle.cos(), angle.sin()
    epsilon = alpha * -F + sin * (alpha * x)
    score = (Denoiser(Returns(F), V())(x, sigma) - x) / s**2
    torch.testing.assert_close(score, -epsilon / s)


def test_network_keeps_its_dtype_and_the_sum_keeps_the_states():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.3))

        def forward(self, x, c_noise, label):
            assert x.dtype == c_noise.dtype == self.weight.dtype
            return self.weight * x

    x = torch.full((1, 1, 1, 1), 80 + 1e-9, dtype=torch.float64)
    out = Denoiser(Linear(), VE())(x, torch.tensor([1e-9], dtype=torch.float64))
    assert out.dtype == torch.float64
    assert out.item() == pytest.approx(80 + 1e-9 + 1e-9 * 0.3 * 80, abs=1e-13)


def test_vp_time_inverts_sigma_against_a_root_finder():
    config = VP()
    for sigma in (1e-3, 0.01, 1.0, 80.0, 152.0):
        t = config.t(torch.tensor(sigma, dtype=torch.float64)).item()
        root = optimize.brentq(
            lambda t, s=sigma: 9.95 * t**2 + 0.1 * t - math.log1p(s**2), 0, 2, xtol=1e-15
        )
        assert t == pytest.approx(root, rel=1e-9)
        assert config.sigma(torch.tensor(t, dtype=torch.float64)).item() == pytest.approx(sigma)
    assert config.sigma(torch.tensor(1.0, dtype=torch.float64)).item() == pytest.approx(
        152.17, abs=0.01
    )


def test_v_is_the_papers_schedule():
    config = V()
    t_min, t_max = config.times
    assert t_min == pytest.approx(2 / math.pi * math.acos(1 / math.sqrt(1 + math.exp(-13))))
    assert t_max == pytest.approx(2 / math.pi * math.acos(1 / math.sqrt(1 + math.exp(9))))
    t = torch.linspace(0.01, 0.98, 50, dtype=torch.float64)
    printed = torch.sqrt(torch.cos(math.pi * t / 2) ** -2 - 1)
    torch.testing.assert_close(config.sigma(t), printed)
    torch.testing.assert_close(config.t(config.sigma(t)), t)


def _cdf(name: str):
    """Distribution function of p(sigma), straight from the table."""
    if name == "vp":
        # The quadratic formula in its textbook form.
        def t(s):
            return (-0.1 + np.sqrt(0.01 + 39.8 * np.log(s**2 + 1))) / 19.9

        return lambda s: (t(s) - 1e-5) / (1 - 1e-5)
    if name == "ve":
        return stats.loguniform(0.002, 80).cdf
    if name == "v":
        low, high = (2 / math.pi * math.acos((1 + math.exp(-r)) ** -0.5) for r in (13, -9))
        return lambda s: (2 / math.pi * np.arccos(1 / np.sqrt(1 + s**2)) - low) / (high - low)
    return stats.lognorm(s=1.2, scale=math.exp(-1.2)).cdf


SLIGHTLY_WRONG = {
    "vp": {"beta_d": 18.5},
    "ve": {"sigma_max": 100.0},
    "v": {"log_snr_min": -5.0},
    "edm": {"p_mean": -1.15},
}


@pytest.mark.parametrize("name", list(PRECONDITIONINGS))
def test_noise_levels_follow_the_table(name):
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sigma = PRECONDITIONINGS[name]().noise_level_icdf(u)
    assert stats.kstest(sigma.numpy(), _cdf(name)).pvalue > 1e-3
    wrong = PRECONDITIONINGS[name](**SLIGHTLY_WRONG[name]).noise_level_icdf(u)
    assert stats.kstest(wrong.numpy(), _cdf(name)).pvalue < 1e-6


@pytest.mark.parametrize("name", list(PRECONDITIONINGS))
def test_quantile_is_the_inverse_of_the_tables_distribution(name):
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    np.testing.assert_allclose(
        _cdf(name)(PRECONDITIONINGS[name]().noise_level_icdf(u).numpy()), u, atol=1e-9
    )


@pytest.mark.parametrize(
    ("config", "law"),
    [
        (EDM(p_mean=0.3, p_std=0.7), stats.lognorm(s=0.7, scale=math.exp(0.3))),
        (VE(sigma_min=0.01, sigma_max=50.0), stats.loguniform(0.01, 50)),
    ],
    ids=["edm", "ve"],
)
def test_quantile_is_scipys(config, law):
    u = np.concatenate([[2.0**-53, 1e-9], np.linspace(0.001, 0.999, 999), [1 - 1e-9]])
    np.testing.assert_allclose(config.noise_level_icdf(torch.from_numpy(u)), law.ppf(u), rtol=1e-9)


@every
def test_no_draw_is_without_noise(config):
    """Nor infinite: at the ends of what is drawn, and in float32, which the network is told."""
    ends = torch.tensor([[2.0**-54, 0.5], [0.9, 1 - 2.0**-53]], dtype=torch.float64)
    sigma = config.noise_level_icdf(ends)
    assert sigma.shape == (2, 2)
    assert sigma.dtype == torch.float64
    assert (sigma.flatten().diff() > 0).all()
    assert (sigma.float() > 0).all()
    assert sigma.float().isfinite().all()


def test_sigma_data_is_not_an_argument_of_any_data():
    assert EDM().sigma_data == math.sqrt(1 / 3)
    uniform = stats.uniform(-1, 2)
    assert EDM().sigma_data == pytest.approx(uniform.std())


@every
def test_constants_are_frozen(config):
    for name in type(config).model_fields:
        with pytest.raises(ValidationError):
            setattr(config, name, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every
def test_constants_that_are_not_finite_are_refused(config, bad):
    for name in type(config).model_fields:
        with pytest.raises(InvalidRequest, match=name):
            type(config)(**{name: bad})


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("vp", {"beta_d": 0.0}),
        ("vp", {"epsilon_t": 1.0}),
        ("vp", {"M": 1}),
        ("ve", {"sigma_min": 0.0}),
        ("ve", {"sigma_min": 90.0}),
        ("v", {"log_snr_min": 13.0}),
        ("edm", {"p_std": 0.0}),
        ("edm", {"sigma_data": -0.5}),
        ("v", {"sigma_data": 0.5}),
        ("v", {"p_mean": -2.0}),
    ],
)
def test_bad_constants_are_refused(name, constants):
    with pytest.raises(InvalidRequest):
        PRECONDITIONINGS[name](**constants)
