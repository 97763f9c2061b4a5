"""Canonical JSON: one text for one value, so that a hash of the text is a hash of the value."""

import json
from typing import Any

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)


def canonical(value: Any) -> str:
    """Return the only JSON text of `value`: keys sorted, no spaces, ASCII, no NaN or infinity.

    Floats are written by `repr`, which reads back to the same float64.

    Raises:
        TypeError: on a type that JSON does not have, or a key that is not a string.
        ValueError: on NaN or an infinity.
    """
    _refuse_foreign_keys(value)
    return _ENCODER.encode(value)


def parse(text: str) -> Any:
    """Read back what `canonical` wrote.

    Raises:
        ValueError: where `text` is not JSON, or not the canonical text of what it says (spaces,
            repeated or unsorted keys): two texts of one meaning would have two hashes.
    """
    value = json.loads(text)
    # What was read from JSON has no foreign keys, so they need not be looked for.
    if _ENCODER.encode(value) != text:
        raise ValueError("the JSON text is not in canonical form")
    return value


def _refuse_foreign_keys(value: Any) -> None:
    # The encoder would turn the keys 1 and "1" into the same text.
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a JSON key must be a string, found {type(key).__name__}")
            _refuse_foreign_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_foreign_keys(inner)
