from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.sources import FolderSource, IdxSource, Source
from pipeline.sources.base import checked
from privacy.errors import DataError

IMAGES = np.zeros((3, 4, 4, 1), dtype=np.uint8)
LABELS = np.array([0, 1, 1], dtype=np.int64)


def check(images=IMAGES, labels=LABELS, size=4, channels=1, classes=("a", "b")):
    return checked(images, labels, size=size, channels=channels, classes=classes, where="x.npz")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": 5}, "5×5×1 .* were expected, found 4×4×1"),
        ({"channels": 3}, "4×4×3 .* were expected, found 4×4×1"),
        ({"channels": 2}, "channels: 1 .* found 2"),
        ({"classes": ("a",)}, "labels from 0 to 0 were expected .* found labels outside"),
        ({"classes": ()}, "at least one name"),
        ({"classes": ("a", "a")}, "no name twice"),
        ({"labels": LABELS.astype(np.float64)}, "integer type were expected, found float64"),
        ({"labels": LABELS - 1}, "found labels outside"),
        ({"labels": LABELS.astype(np.uint64) + 2**63}, "found labels outside"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "empty"),
        ({"labels": LABELS[:2]}, "one a record"),
        ({"images": IMAGES.astype(np.float32)}, r"uint8 .* found float32"),
        ({"images": IMAGES[..., 0]}, "4×4×1 .* were expected, found 4×4"),
    ],
)
def test_what_is_not_as_the_spec_says_is_refused(change, text):
    with pytest.raises(DataError, match=text):
        check(**change)


def test_labels_of_any_integer_type_become_int64():
    for kind in (np.uint8, np.int16, np.uint64):
        assert check(labels=LABELS.astype(kind)).labels.dtype == np.int64


def test_private_values_are_not_shown_by_errors():
    images = np.full((3, 4, 4, 1), 213, dtype=np.uint8)
    labels = np.array([0, 1, 7777], dtype=np.int64)
    with pytest.raises(DataError) as caught:
        check(images=images, labels=labels)
    assert "7777" not in str(caught.value)


def test_kind_chooses_the_source():
    adapter = TypeAdapter(Source)
    for source in get_args(get_args(Source)[0]):
        (kind,) = get_args(source.model_fields["kind"].annotation)
        fields = {name: "x" for name in source.model_fields if name not in ("kind", "split")}
        assert type(adapter.validate_python({"kind": kind, **fields})) is source
    for bad in (
        {"kind": "csv", "path": "x"},
        {"kind": "npz"},
        {"kind": "npz", "path": "x", "shuffle": True},
        {"kind": "digits", "split": "validation"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


def test_relative_paths_are_taken_from_the_specs_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    source = IdxSource(kind="idx", images="a/i.gz", labels="/abs/l.gz").resolved(Path("/spec"))
    assert (source.images, source.labels) == (Path("/spec/a/i.gz"), Path("/abs/l.gz"))
    assert FolderSource(kind="folder", path="~/d").resolved(Path("/spec")).path == Path(
        "/home/me/d"
    )
