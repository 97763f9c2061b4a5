"""What tests of several packages build alike."""

import numpy as np
import torch

from privacy.records import OwnedRecords
from synth.records import Records

# A spec that parses and is never run.
SMALL_SPEC = """
name: small
data: {name: small, source: {kind: digits}, records: 1000, size: 8, channels: 1, classes: [a, b]}
privacy: {epsilon: 8, delta: 1e-4}
model: {multipliers: [1], attention: []}
train: {batch: 100, steps: 40}
synthesize: {images: 30}
"""

# Noisy moments of scikit-learn's digits.
DIGITS_MOMENTS = """
name: digits-moments
data:
  name: digits
  source: {kind: digits, split: train}
  records: 1438
  size: 8
  channels: 1
  classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
  public: true
privacy: {epsilon: 4.9, delta: 1e-4}
method: moments
synthesize: {per_class: [30, 0, 5, 1, 0, 0, 0, 4, 0, 0], shard_rows: 15}
"""


def tensors_in(value):
    """Return the tensors within nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def records_of(images, labels, device="cpu", ids=None, total=None):
    """Return images [n, H, W, C] that one worker owns, known by their places unless ids are given.

    For tests that say which record they mean; what ships has the ids of `privacy.records.own`.
    """
    ids = np.asarray(np.arange(len(labels)) if ids is None else ids).astype(np.uint64)
    owned = OwnedRecords(images, np.asarray(labels), ids, len(labels) if total is None else total)
    return Records.of(owned, torch.device(device))


def images_of(records):
    """Return all images of records, [n, C, H, W] in [-1, 1]."""
    return records.take(np.arange(len(records)))[0]


def part_of(records, positions):
    """Return the records at some positions, of the same whole."""
    return Records(
        records.values[positions], records.labels[positions], records.ids[positions], records.total
    )
