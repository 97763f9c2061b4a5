"""Specs of a method whose model draws images itself."""

import pytest

from pipeline.plan import plan
from pipeline.spec import parse_spec
from pipeline.spec.load import SpecError
from tests.builders import DIGITS_MOMENTS, SMALL_SPEC


def changed(old, new):
    assert DIGITS_MOMENTS.count(old) == 1
    return DIGITS_MOMENTS.replace(old, new)


def test_its_sampler_is_its_own_unless_another_is_named():
    assert parse_spec(DIGITS_MOMENTS).synthesize.sampler == "direct"
    named = parse_spec(changed("shard_rows: 15", "sampler: ddim"))
    assert named.synthesize.sampler == "ddim"
    assert parse_spec(SMALL_SPEC).synthesize.sampler == "churn"


def test_it_is_written_and_read_back():
    spec = parse_spec(DIGITS_MOMENTS)
    assert parse_spec(spec.to_yaml()) == spec
    assert '"sampler":"direct"' in spec.canonical_json()


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        (
            changed("method: moments", "method: moments\ntrain: {batch: 9, steps: 1}"),
            13,
            "train: expected no section, for the method is moments",
        ),
        (
            changed("shard_rows: 15", "shard_rows: 15, guidance: 1"),
            13,
            "synthesize.guidance: expected 0, or a sampler",
        ),
        (changed("size: 8", "size: 3"), 7, "data.size"),
        (
            SMALL_SPEC.replace("images: 30", "images: 30, sampler: direct"),
            7,
            "synthesize.sampler: expected a sampler, for the model of diffusion",
        ),
    ],
)
def test_what_does_not_fit_is_refused(text, line, expected):
    with pytest.raises(SpecError) as refusal:
        parse_spec(text)
    assert f":{line}: {expected}" in str(refusal.value)


def test_any_size_can_be_planned():
    """No network has to fit: neither multiples of four nor a resolution for attention."""
    for size in (4, 7, 9, 28, 64):
        for channels in (1, 3):
            text = changed("size: 8", f"size: {size}").replace(
                "channels: 1", f"channels: {channels}"
            )
            found = plan(parse_spec(text))
            assert 0.9 * 4.9 < found.epsilon.rdp <= 4.9
            assert found.cost.parameters == 0
            assert found.cost.training_seconds is None
