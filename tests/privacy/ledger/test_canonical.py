import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.ledger.rows import canonical, parse

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
values = st.recursive(
    scalars.filter(lambda v: v not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(values)
def test_reads_back_as_it_was(value):
    assert parse(canonical(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_order_of_keys_does_not_matter(mapping):
    assert canonical(mapping) == canonical(dict(reversed(mapping.items())))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_exact(number):
    assert repr(parse(canonical(number))) == repr(number)


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_different_lists_have_different_texts(one, other):
    assert (canonical(one) == canonical(other)) == (one == other)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_refuses_what_json_has_not(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(value)


@pytest.mark.parametrize("value", [{1: "a"}, [{None: 1}], {"a": b"bytes"}, {"a": {1, 2}}])
def test_refuses_other_types(value):
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("text", ['{"a": 1}', '{"b":1,"a":2}', '{"a":1,"a":1}', "1.0e0", '"é"'])
def test_refuses_a_second_text_of_the_same_value(text):
    json.loads(text)
    with pytest.raises(ValueError, match="canonical"):
        parse(text)
