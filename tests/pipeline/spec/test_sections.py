import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.settings import CLASSIFIER_NAMES
from pipeline.models import build_denoiser
from pipeline.spec import Evaluate, parse_spec
from synth import preconditioning, settings
from synth.samplers import SAMPLERS
from synth.settings import PRECONDITIONINGS, SynthesizeSettings, TrainSettings


def test_steps_give_the_batch_exactly():
    assert TrainSettings(batch=250, steps=7).schedule(1000) == (0.25, 7)


def test_epochs_count_like_the_paper():
    # MNIST of Table 4.9: q = 1/15 and T = 4500, so 4000 records a step are expected, not 4096.
    assert TrainSettings(batch=4096, epochs=300).schedule(60_000) == (1 / 15, 4500)
    assert TrainSettings(batch=2048, epochs=300).schedule(162_770) == (1 / 80, 24_000)


@given(records=st.integers(1, 10**6), batch=st.integers(1, 10**6), epochs=st.integers(1, 1000))
def test_epochs_take_every_record_as_often_as_said(records, batch, epochs):
    q, T = TrainSettings(batch=min(batch, records), epochs=epochs).schedule(records)
    assert 0 < q <= 1
    assert math.isclose(q * T, epochs)


@given(images=st.integers(1, 10**6), classes=st.integers(1, 200))
def test_images_are_spread_evenly(images, classes):
    counts = SynthesizeSettings(images=images).class_counts(classes)
    assert len(counts) == classes
    assert sum(counts) == images == SynthesizeSettings(images=images).total
    assert max(counts) - min(counts) <= 1


def test_given_counts_are_kept():
    section = SynthesizeSettings(per_class=(3, 0, 4))
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
    assert spec.model.resolutions(spec.data.size) == network.config.resolutions(8) == (8, 4, 2)


def test_names_known_without_torch_are_those_of_the_registries():
    assert set(settings.PRECONDITIONINGS) == set(preconditioning.PRECONDITIONINGS)
    assert Evaluate().classifiers == CLASSIFIER_NAMES


def test_reading_a_spec_imports_no_torch(edited, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(edited())
    code = (
        "import sys; from pathlib import Path; from pipeline.spec import load_spec; "
        "load_spec(Path(sys.argv[1])); "
        "print({'torch', 'ray', 'mlflow', 'scipy'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, path], check=False, capture_output=True, text=True
    )
    assert (found.stdout.strip(), found.stderr) == ("set()", "")
