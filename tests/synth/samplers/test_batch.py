import inspect

import pytest

from synth.inference import chosen_batch

SIZES = [(8, 8), (8, 16), (28, 32), (32, 128), (64, 128)]


@pytest.mark.parametrize(("size", "base"), SIZES)
def test_batches_grow_with_what_a_number_takes_and_where_it_runs(size, base):
    exact, rounded = (chosen_batch(size, base, p) for p in ("float32", "bfloat16"))
    assert 32 <= exact <= rounded <= 2 * exact
    assert chosen_batch(size, base, "float32", on_gpu=True) > exact
    assert chosen_batch(size, base, "float32", guided=True) == exact // 2


def test_a_feature_map_fills_a_mebibyte_or_holds_32_rows():
    assert chosen_batch(8, 16, "float32") * 8 * 8 * 16 * 4 == 2**20
    assert chosen_batch(64, 128, "float32") == 32
    assert chosen_batch(64, 128, "bfloat16") == 64


def test_no_machine_has_a_say():
    """A shard's pixels depend on the batch: it is a function of public sizes only."""
    assert set(inspect.signature(chosen_batch).parameters) == {
        "size", "base", "precision", "guided", "on_gpu",
    }  # fmt: skip
