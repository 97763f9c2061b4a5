import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.spec.load import SpecError, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),  # text in YAML 1.1
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("12", 12),
        ("+12", 12),
        ("007", 7),
        ("0o17", 15),
        ("0xff", 255),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("no", "no"),  # false in YAML 1.1
        ("on", "on"),
        ("1:30", "1:30"),  # ninety in YAML 1.1
        ("2026-11-20", "2026-11-20"),  # a date in YAML 1.1
        ("1_000", "1_000"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("~", None),
        ("null", None),
        ("", None),
        ("!!str 12", "12"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = read_yaml(f"x: {text}", "f").value["x"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read_so_that_it_can_be_refused_by_name():
    assert math.isnan(read_yaml("x: .nan", "f").value["x"])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives(number):
    found = read_yaml(f"x: {number!r}", "f").value["x"]
    assert found == number


def test_lines_of_keys_and_items():
    document = read_yaml("a:\n  b: 1\n  c:\n    - 5\n    - d: 6\n", "f")
    assert document.value == {"a": {"b": 1, "c": [5, {"d": 6}]}}
    lines = {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1, "d"): 5}
    assert {path: document.line(path) for path in lines} == lines


def test_a_field_that_is_not_written_has_the_line_of_its_section():
    assert read_yaml("a: 1\nb:\n  c: 2\n", "f").line(("b", "missing")) == 2


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("a: 1\nb: 2\na: 3", 3, "again"),
        ("a: 1\nb:\n  c: 1\n  c: 1", 4, "again"),
        ("a: 1\n2: b", 2, "2"),
        ("a: 1\n? [x]\n: b", 2, "a collection"),
        ("a: &x [1]\nb: *x", 1, "alias"),
        ("a: &x {b: *x}", 1, "alias"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", 2, "python/object/apply"),
        ("a: 1\nb: !!python/name:os.system", 2, "python/name"),
        ("a: !!int x", 1, "int"),
        ("a: " + "9" * 5000, 1, "int"),
        ("a: [1,\nb: 2", 2, "expected"),
        ("a: 1\n---\nb: 2", 2, "document"),
        ("a: 'x", 1, "end of stream"),
        ("a: \x01", 1, "character"),
        ("[" * 20000, 1, "deep nesting"),
    ],
)
def test_what_is_refused(text, line, found):
    with pytest.raises(SpecError) as caught:
        read_yaml(text, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml:{line}: ")
    assert found in str(caught.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(SpecError) as caught:
        read_yaml("a: 1\na: 2\nb: 1\nb: 2", "f")
    assert [problem.line for problem in caught.value.problems] == [2, 4]


@given(st.text(max_size=60))
def test_no_text_makes_it_fail_in_another_way(text):
    try:
        read_yaml(text, "f")
    except SpecError as error:
        assert error.problems
