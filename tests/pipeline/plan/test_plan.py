import functools
import json
import math

import pytest

from pipeline.plan import plan
from pipeline.spec import parse_spec
from pipeline.tracking.release import PLAN_NAMES
from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.budget import Component
from privacy.errors import InvalidRequest
from privacy.mechanisms import Gaussian, SubsampledGaussian
from tests.builders import DIGITS_MOMENTS

MNIST = """
name: mnist
data:
  name: mnist
  source: {kind: idx, images: not/there.gz, labels: nor/this.gz}
  records: 60000
  size: 28
  channels: 1
  classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
privacy: {epsilon: 10, delta: 1e-5}
train: {batch: 4096, epochs: 300}
synthesize: {images: 60000}
"""

DIGITS = """
name: digits
data:
  name: digits
  source: {kind: digits}
  records: 1438
  size: 8
  channels: 1
  classes: [a, b, c]
privacy: {epsilon: 3, delta: 1e-4}
model: {base: 8, multipliers: [1], blocks: 1, attention: []}
train: {batch: 256, steps: 40, views: 4}
synthesize: {images: 30, steps: 10}
"""

WARMUP = "noise_multiplier: 5, clip_norm: 3, steps: 10, batch: 8, learning_rate: 1e-3"


@functools.cache
def planned(text, *changes, trial=False):
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return plan(parse_spec(text), trial=trial)


def test_the_papers_setting_gives_the_papers_noise():
    found = planned(MNIST)
    assert (found.numbers["sampling_probability"], found.numbers["steps"]) == (1 / 15, 4500)
    assert found.numbers["expected_batch"] == pytest.approx(4000)
    assert found.numbers["noise_multiplier"] == pytest.approx(2.48779296875, rel=1e-3)  # Table 4.9
    assert found.epsilon.rdp == pytest.approx(9.9959, abs=1e-2)
    assert found.epsilon.pld == pytest.approx(9.2916, abs=1e-2)
    assert found.epsilon.pld <= found.epsilon.prv <= found.epsilon.rdp <= 10
    assert found.components == (
        Component("dp-sgd", SubsampledGaussian(1 / 15, found.numbers["noise_multiplier"], 4500)),
    )
    assert found.notes == ()
    assert not found.void


def test_the_papers_setting_gives_the_papers_cost():
    cost = planned(MNIST).cost
    assert cost.parameters == pytest.approx(1.75e6, rel=0.01)
    assert cost.views == pytest.approx(576e6)
    assert cost.flops_per_view == pytest.approx(1.9e9, rel=0.02)
    assert cost.training_flops == pytest.approx(1.1e18, rel=0.02)
    assert cost.device is None
    assert cost.training_seconds is None


def test_warmup_and_training_meet_the_target_together():
    found = planned(DIGITS, ("views: 4", f"views: 4, warmup: {{{WARMUP}}}"))
    alone = planned(DIGITS)
    assert [component.name for component in found.components] == ["warmup", "dp-sgd"]
    assert found.components[0].mechanism == Gaussian(5.0, 1)
    assert found.numbers["noise_multiplier"] > alone.numbers["noise_multiplier"]
    mechanisms = [component.mechanism for component in found.components]
    epsilon = accountant("rdp").epsilon(mechanisms, 1e-4)
    assert round_up(epsilon) == found.epsilon.rdp
    assert 0.99 * 3 < epsilon <= 3


def test_a_warmup_that_spends_everything_is_refused_with_its_price():
    costly = WARMUP.replace("noise_multiplier: 5", "noise_multiplier: 0.4")
    with pytest.raises(InvalidRequest, match=r"warm-up alone spends ε = \d") as caught:
        planned(DIGITS, ("views: 4", f"views: 4, warmup: {{{costly}}}"))
    assert "train.warmup.noise_multiplier" in str(caught.value)


def test_calibrated_under_prv_it_says_what_the_ledger_needs():
    found = planned(DIGITS, ("delta: 1e-4", "delta: 1e-4, calibration: prv"))
    assert 0.98 * 3 < found.epsilon.prv <= 3 < found.epsilon.rdp
    assert found.numbers["noise_multiplier"] < planned(DIGITS).numbers["noise_multiplier"]
    (note,) = found.notes
    assert "RDP" in note
    assert str(found.to_dict()["epsilon"]["rdp"]) in note


def test_printed_bounds_are_never_below_the_true_ones():
    found = planned(DIGITS)
    mechanisms = [component.mechanism for component in found.components]
    printed = found.to_dict()["epsilon"]
    for name in ("rdp", "prv", "pld"):
        exact = accountant(name).epsilon(mechanisms, found.spec.privacy.delta)
        assert exact <= printed[name] <= exact + 1e-4


def test_what_only_informs_may_fail():
    # ε in the hundreds: PRV and PLD state nothing there, RDP still does.
    found = planned(DIGITS, ("epsilon: 3", "epsilon: 2000"))
    assert (found.epsilon.prv, found.epsilon.pld) == (None, None)
    assert math.isfinite(found.epsilon.rdp)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["epsilon"]["prv"] is None


def test_a_seed_is_said_to_make_it_void():
    found = planned(DIGITS, ("delta: 1e-4", "delta: 1e-4, seed: 0"))
    assert found.void
    assert "VOID" in found.notes[0]


def test_many_records_to_a_unit_are_said_to_weaken_it():
    found = planned(DIGITS, ("delta: 1e-4", "delta: 1e-4, unit: person, records_per_unit: 3"))
    assert "person" in found.notes[0]


def test_it_is_the_same_every_time_and_plain_json():
    first = planned(DIGITS)
    assert plan(parse_spec(DIGITS), trial=False) == first
    record = first.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["components"][0] == {
        "name": "dp-sgd",
        "mechanism": {
            "type": "subsampled_gaussian",
            "sampling_probability": 256 / 1438,
            "noise_multiplier": first.numbers["noise_multiplier"],
            "steps": 40,
        },
    }


def test_it_touches_no_data_and_no_home(monkeypatch, tmp_path):
    monkeypatch.setenv("UMBRA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    planned(DIGITS, ("{kind: digits}", "{kind: npz, path: not-there.npz}"), trial=True)
    assert list(tmp_path.iterdir()) == []


def test_what_a_tracker_keeps_is_on_its_public_list():
    found = planned(DIGITS, ("views: 4", f"views: 4, warmup: {{{WARMUP}}}"))
    method = planned(DIGITS_MOMENTS, ("epsilon: 4.9", "epsilon: 90"))
    assert set(found.costs()) | set(method.costs()) == PLAN_NAMES
    assert method.costs()["teacher_steps"] == 60
    assert found.costs()["warmup_steps"] == 1
    assert found.costs()["views"] == pytest.approx(40 * 256 * 4)
    unbounded = planned(DIGITS, ("epsilon: 3", "epsilon: 2000")).costs()
    assert set(found.costs()) - set(unbounded) == {"epsilon_prv", "epsilon_pld", "warmup_steps"}
