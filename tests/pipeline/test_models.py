"""A spec becomes the network, denoiser and sampler it names."""

from typing import Any

import pytest
import torch

from pipeline.models import (
    Recipe,
    build_denoiser,
    build_guided,
    build_sampler,
)
from pipeline.plan import build_method, training_components
from pipeline.spec import Spec
from privacy.budget import Component
from privacy.errors import InvalidRequest
from privacy.mechanisms import Gaussian
from synth.preconditioning import EDM, VE, VP, V
from synth.samplers.churn import Churn
from synth.samplers.ddim import DDIM, StochasticDDIM


def _spec(**sections: dict[str, Any]) -> Spec:
    return Spec.model_validate(
        {
            "name": "tiny",
            "data": {
                "name": "shapes",
                "source": {"kind": "digits"},
                "records": 1437,
                "size": 8,
                "channels": 3,
                "classes": ("a", "b"),
            },
            "privacy": {"epsilon": 10.0, "delta": 1e-4},
            "model": {"base": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
            | sections.get("model", {}),
            "train": {"batch": 64, "steps": 10, "views": 2} | sections.get("train", {}),
            "resources": sections.get("resources", {}),
            "synthesize": {"images": 6, "steps": 7} | sections.get("synthesize", {}),
        }
    )


@pytest.mark.parametrize(("name", "config"), [("edm", EDM), ("vp", VP), ("ve", VE), ("v", V)])
def test_config_by_name(name: str, config: type) -> None:
    assert isinstance(build_denoiser(_spec(model={"config": name})).preconditioning, config)


def test_noise_distribution_is_the_specs() -> None:
    config = build_denoiser(_spec(model={"p_mean": -0.4, "p_std": 1.4})).preconditioning
    assert isinstance(config, EDM)
    assert (config.p_mean, config.p_std) == (-0.4, 1.4)


def test_network_is_the_specs() -> None:
    denoiser = build_denoiser(_spec())
    config = denoiser.network.config
    assert (config.size, config.channels, config.classes) == (8, 3, 2)
    assert (config.base, config.multipliers, config.blocks) == (8, (1, 2), 1)
    assert config.attention == (4,)
    x = torch.zeros(2, 3, 8, 8)
    assert denoiser(x, torch.ones(2), torch.tensor([0, 2])).shape == x.shape


def test_churn_settings_are_the_specs() -> None:
    churn = {"s_churn": 3.0, "s_min": 0.2, "s_max": 9.0, "s_noise": 1.01}
    section = {"churn": churn, "sigma_min": 0.01, "sigma_max": 40.0, "rho": 5.0}
    assert build_sampler(_spec(synthesize=section)) == Churn(
        steps=7, sigma_max=40.0, sigma_min=0.01, rho=5.0, s_churn=3.0, s_min=0.2, s_max=9.0,
        s_noise=1.01,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [("ddim", DDIM), ("ddim-stochastic", StochasticDDIM)])
def test_samplers_by_name(name: str, kind: type) -> None:
    assert build_sampler(_spec(synthesize={"sampler": name})) == kind(steps=7)


def test_guidance_is_the_specs_and_leans_on_the_null_label() -> None:
    spec = _spec(synthesize={"guidance": 0.5})
    torch.manual_seed(0)
    denoiser = build_denoiser(spec).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x, levels, labels = torch.randn(2, 3, 8, 8), torch.full((2,), 0.7), torch.tensor([0, 1])
        plain = denoiser(x, levels, labels)
        null = denoiser(x, levels, torch.tensor([2, 2]))
        guided = build_guided(spec, denoiser)(x, 0.7, labels)
    torch.testing.assert_close(guided, 1.5 * plain - 0.5 * null, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided, plain)


def test_recipe_builds_the_same_after_a_trip_through_json() -> None:
    spec = _spec(model={"p_mean": 0.0}, synthesize={"guidance": 1.0})
    recipe = Recipe.model_validate_json(Recipe.of(spec).model_dump_json())
    assert recipe == Recipe.of(spec)
    assert build_sampler(recipe) == build_sampler(spec)
    state, other = build_denoiser(recipe).state_dict(), build_denoiser(spec).state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in other.items()}
    assert "source" not in Recipe.of(spec).model_dump_json()


def test_what_is_trained_is_what_was_reserved(house, blots_spec):
    """Not what the spec would calibrate to under this version of the accountants."""
    run = house.reserve(blots_spec())
    reservation = house.budget.reservation(run.state().reservation_id)
    mechanism = reservation.component("dp-sgd").mechanism
    spec = run.spec()
    training = build_method(spec).training(reservation.plan, build_denoiser(spec))
    assert training.dpsgd.mechanism(training.steps) == mechanism
    assert (training.dpsgd.records, training.steps, training.settings.views) == (40, 4, 2)


@pytest.mark.parametrize(("steps", "block"), [(1, 1), (60, 1), (149, 2), (1000, 20), (4500, 50)])
def test_a_block_of_charges_is_at_most_a_fiftieth_of_the_training(blots_spec, steps, block):
    """So that an interruption cannot forfeit more; 50 is the setting's default."""
    spec = blots_spec(("steps: 4", f"steps: {steps}"))
    training = build_method(spec).training(training_components(spec), build_denoiser(spec))
    assert training.settings.charge_block == block


QUERY = "noise_multiplier: 3, clip_norm: 2, steps: 5, batch: 4, learning_rate: 1e-3"


def test_the_warm_up_is_drawn_as_it_was_reserved(blots_spec):
    spec = blots_spec(("views: 2", f"views: 2\n  warmup: {{{QUERY}}}"))
    method = build_method(spec)
    sgd = training_components(spec)[1]
    reserved = (Component("warmup", Gaussian(9.0)), sgd)
    training = method.training(reserved, build_denoiser(spec))
    assert training.settings.warmup.noise_multiplier == 9.0
    assert training.settings.warmup.clip_norm == 2.0
    with pytest.raises(InvalidRequest, match="do not agree on a warm-up"):
        method.training((sgd,), build_denoiser(spec))
    with pytest.raises(InvalidRequest, match="do not agree on a warm-up"):
        build_method(blots_spec()).training(reserved, build_denoiser(spec))


GPU = {"gpus_per_worker": 1}


def micro_batch(**sections) -> int:
    spec = _spec(**sections)
    return build_method(spec).micro_batch(build_denoiser(spec))


@pytest.mark.parametrize(
    ("train", "resources", "expected"),
    [
        # All of a large batch fits: 64 expected and 3 deviations of 8.
        ({}, GPU, 88),
        # So does a worker's: 32 and 3 times 5.66, however many "auto" will be.
        ({}, GPU | {"workers": 2}, 49),
        ({}, GPU | {"workers": "auto"}, 88),
        ({}, GPU | {"gpus_per_worker": 0.5}, 88),
        # What is stated bounds it, and is never filled up beyond a large batch.
        ({"micro_batch": 30}, GPU, 30),
        ({"micro_batch": 5000}, GPU, 88),
        ({"micro_batch": 5000}, {}, 5000),
        # All records of a worker are the largest there can be.
        ({"batch": 1437}, GPU, 1437),
        ({"batch": 1437}, GPU | {"workers": 4}, 360),
    ],
)
def test_a_gpus_micro_batch_is_made_for_public_sizes(train, resources, expected) -> None:
    assert micro_batch(train=train, resources=resources) == expected


def test_a_gpu_with_little_memory_takes_equal_parts_of_a_large_batch() -> None:
    sizes = {}
    for gib in (0.02, 0.05, 0.1):
        memory = {"memory_gib_per_worker": gib}
        fitting = micro_batch(train={"batch": 1437}, resources=GPU | memory)
        assert fitting < 1437
        parts = -(-1437 // fitting)
        assert parts * fitting - 1437 < parts
        sizes[gib] = fitting
    assert len(set(sizes.values())) == 3


def test_a_cpus_micro_batch_does_not_depend_on_the_batch() -> None:
    sizes = {micro_batch(train={"batch": batch}) for batch in (1, 64, 1437)}
    assert sizes == {2**17 // (2 * 8 * 8)}
