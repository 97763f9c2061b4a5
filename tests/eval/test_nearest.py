"""Distances in blocks against one pair at a time, and the memory they take."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import memorisation
from eval.memorisation import nearest


def naive(queries, references, count):
    """One pair at a time."""
    scale = 255 if queries.dtype == np.uint8 else 1
    found = []
    for query in queries.astype(float) / scale:
        all_of_it = sorted(
            float(np.sqrt(np.sum((query - reference) ** 2)))
            for reference in references.astype(float) / scale
        )
        found.append(all_of_it[:count])
    return np.array(found)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    count=st.integers(1, 4),
    rows=st.integers(1, 40),
    features=st.booleans(),
)
def test_distances_are_those_of_one_pair_at_a_time(seed, sizes, count, rows, features):
    rng = np.random.default_rng(seed)
    n, m = sizes
    count = min(count, m)
    if features:
        queries, references = rng.normal(size=(n, 5)), rng.normal(size=(m, 5))
    else:
        queries, references = (rng.integers(0, 256, (k, 3, 2, 1), dtype=np.uint8) for k in sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorisation, "_ROWS", rows)
        found = nearest(queries, references, count)
    np.testing.assert_allclose(found, naive(queries, references, count), rtol=1e-7, atol=1e-7)


def test_a_copy_of_a_large_image_is_at_distance_zero():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    assert (nearest(images[::-1].copy(), images) == 0).all()
    changed = images.copy()
    changed[:, 0, 0, 0] ^= 1
    np.testing.assert_allclose(nearest(changed, images), 1 / 255, rtol=1e-12)


def peak_bytes(queries, references):
    tracemalloc.start()
    nearest(queries, references)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_pairs(monkeypatch):
    monkeypatch.setattr(memorisation, "_ROWS", 256)
    images = np.random.default_rng(0).integers(0, 256, (3000, 4, 4, 1), dtype=np.uint8)
    assert peak_bytes(images, images[:2500]) < 6 * 2**20 < 8 * 3000 * 2500  # 57 MiB of pairs


def test_a_block_holds_fewer_large_images(monkeypatch):
    monkeypatch.setattr(memorisation, "_NUMBERS", 2**16)
    images = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)
    assert peak_bytes(images, images) < 4 * 2**20 < 8 * images.size  # 9 MiB in float64


def test_progress_ends_at_the_number_of_queries(monkeypatch):
    monkeypatch.setattr(memorisation, "_ROWS", 4)
    reported = []
    nearest(np.zeros((10, 2)), np.zeros((3, 2)), on_progress=reported.append)
    assert reported == [4, 8, 10]


@pytest.mark.parametrize(
    ("queries", "references", "count", "error", "reported"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), 1, ValueError, "expected the shape"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 4, ValueError, "expected 1 to 3"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 0, ValueError, "expected 1 to 3"),
        (np.zeros((3, 2)), np.zeros((0, 2)), 1, ValueError, "references"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), 1, ValueError, "finite"),
        (np.zeros((3, 2), int), np.zeros((3, 2)), 1, TypeError, "float"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros((3, 2)), 1, ValueError, "expected the shape"),
    ],
)
def test_invalid_arguments_are_refused(queries, references, count, error, reported):
    with pytest.raises(error, match=reported):
        nearest(queries, references, count)
