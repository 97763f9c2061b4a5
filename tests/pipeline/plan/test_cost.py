import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline import plan as planning
from pipeline.models import build_denoiser
from pipeline.plan import build_method
from pipeline.plan import estimate as estimate_cost
from pipeline.spec import parse_spec

SPEC = """
name: small
data:
  name: small
  source: {kind: digits}
  records: 1000
  size: 8
  channels: 3
  classes: [a, b]
privacy: {epsilon: 8, delta: 1e-4}
model: {base: 8, multipliers: [1, 2], blocks: 1, attention: [4]}
train: {batch: 100, steps: 40, views: 4}
synthesize: {images: 30, steps: 10}
"""


def spec(*changes):
    text = SPEC
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return parse_spec(text)


def estimate(spec, views, *, trial=True):
    return estimate_cost(spec, build_method(spec), views, trial=trial)


def evaluations_per_image(spec):
    found = estimate(spec, 1.0, trial=False)
    return 3 * found.sampling_flops / found.flops_per_view / spec.synthesize.total


def test_operations_of_a_view_against_a_counted_forward_and_backward():
    denoiser = build_denoiser(spec())
    x, sigma = torch.randn(1, 3, 8, 8, requires_grad=True), torch.ones(1)
    with FlopCounterMode(display=False) as counter:
        denoiser(x, sigma, torch.tensor([0])).sum().backward()
    assert estimate(spec(), 1.0, trial=False).flops_per_view == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_parameters_against_a_real_denoiser():
    denoiser = build_denoiser(spec())
    parameters = sum(weight.numel() for weight in denoiser.parameters())
    assert estimate(spec(), 1.0, trial=False).parameters == parameters


def test_totals_grow_with_what_they_count():
    once = estimate(spec(), 100.0, trial=False)
    assert estimate(spec(), 300.0, trial=False).training_flops == 3 * once.training_flops
    twice = estimate(spec(("images: 30", "images: 60")), 100.0, trial=False)
    assert twice.sampling_flops == 2 * once.sampling_flops
    forward = once.flops_per_view / 3
    assert once.sampling_flops == pytest.approx(30 * 19 * forward)  # 10 Heun steps


@pytest.mark.parametrize(
    ("change", "evaluations"),
    [
        ("steps: 10", 19),
        ("steps: 10, guidance: 0.5", 38),
        ("steps: 10, sampler: ddim", 10),
        ("steps: 10, sampler: ddim-stochastic, guidance: 1", 20),
    ],
)
def test_evaluations_of_an_image(change, evaluations):
    assert evaluations_per_image(spec(("steps: 10", change))) == evaluations


def test_memory_grows_with_the_records_at_once():
    one = estimate(spec(("views: 4", "views: 4, micro_batch: 1")), 1.0, trial=False)
    eight = estimate(spec(("views: 4", "views: 4, micro_batch: 8")), 1.0, trial=False)
    weights = one.parameters * 32
    assert one.worker_bytes > weights
    assert eight.worker_bytes - weights == 8 * (one.worker_bytes - weights)


def test_memory_is_that_of_one_record_where_they_are_taken_one_by_one():
    few = estimate(spec(("views: 4", "views: 128, micro_batch: 1")), 1.0, trial=False)
    many = estimate(spec(("views: 4", "views: 128, micro_batch: 8")), 1.0, trial=False)
    assert few.worker_bytes == many.worker_bytes


def test_times_come_from_the_trial_alone(monkeypatch):
    monkeypatch.setattr(planning, "_views_per_second", lambda spec, denoiser: ("cpu", 50.0))
    found = estimate(spec(), 1000.0)
    assert found.views_per_second == 50.0
    assert found.training_seconds == 20.0
    assert found.sampling_seconds == pytest.approx(30 * 19 / 150)
    two = estimate(spec(("synthesize:", "resources: {workers: 2}\nsynthesize:")), 1000.0)
    assert two.training_seconds == 10.0
    untried = estimate(spec(), 1000.0, trial=False)
    nothing = dict.fromkeys(("device", "views_per_second", "training_seconds", "sampling_seconds"))
    assert dataclasses.asdict(untried) == dataclasses.asdict(found) | nothing


def test_the_trial_runs():
    found = estimate(spec(), 1000.0)
    assert found.views_per_second > 0
    assert found.device in {"cpu", "cuda"}
