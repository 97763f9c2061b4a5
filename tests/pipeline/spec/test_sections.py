import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models import build_denoiser
from pipeline.spec import parse_spec
from pipeline.spec.synthesize import Synthesize
from pipeline.spec.train import Train
from synth.preconditioning import PRECONDITIONINGS
from synth.samplers import SAMPLERS


def test_steps_give_the_batch_exactly():
    schedule = Train(batch=250, steps=7).schedule(1000)
    assert (schedule.sampling_probability, schedule.steps) == (0.25, 7)


def test_epochs_count_like_the_paper():
    # MNIST of Table 4.9: q = 1/15 and T = 4500, so 4000 records a step are expected, not 4096.
    schedule = Train(batch=4096, epochs=300).schedule(60_000)
    assert (schedule.sampling_probability, schedule.steps) == (1 / 15, 4500)
    celeba = Train(batch=2048, epochs=300).schedule(162_770)
    assert (celeba.sampling_probability, celeba.steps) == (1 / 80, 24_000)


@given(records=st.integers(1, 10**6), batch=st.integers(1, 10**6), epochs=st.integers(1, 1000))
def test_epochs_take_every_record_as_often_as_said(records, batch, epochs):
    schedule = Train(batch=min(batch, records), epochs=epochs).schedule(records)
    assert 0 < schedule.sampling_probability <= 1
    assert math.isclose(schedule.sampling_probability * schedule.steps, epochs)


@given(images=st.integers(1, 10**6), classes=st.integers(1, 200))
def test_images_are_spread_evenly(images, classes):
    counts = Synthesize(images=images).class_counts(classes)
    assert len(counts) == classes
    assert sum(counts) == images == Synthesize(images=images).total
    assert max(counts) - min(counts) <= 1


def test_given_counts_are_kept():
    section = Synthesize(per_class=(3, 0, 4))
    assert section.class_counts(3) == (3, 0, 4)
    assert section.total == 7


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_registered_sampler_can_be_asked_for(edited, name):
    section = parse_spec(edited(("images: 100", f"images: 100\n  sampler: {name}"))).synthesize
    assert section.sampler == name
    assert (section.churn is not None) == (name == "churn")


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_every_registered_config_can_be_asked_for(edited, name):
    model = parse_spec(edited(("  attention: [4]", f"  attention: [4]\n  config: {name}"))).model
    assert model.config == name
    assert (model.p_mean is not None) == (model.p_std is not None) == (name == "edm")


def test_the_noise_distribution_can_be_chosen(edited):
    changed = edited(("  attention: [4]", "  attention: [4]\n  p_mean: -0.4"))
    model = parse_spec(changed).model
    assert (model.p_mean, model.p_std) == (-0.4, 1.2)


def test_resolutions_agree_with_the_network(edited):
    spec = parse_spec(edited())
    network = build_denoiser(spec).network
    assert spec.model.resolutions(spec.data.size) == network.config.resolutions == (8, 4, 2)
