"""What tests of several packages build alike."""

import torch

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
