import math

import pytest

from privacy.errors import IntegrityBroken, InvalidRequest
from synth.export.documents import FIELDS, checked_statement, read_statement


def test_a_complete_statement_passes_with_what_else_it_says(privacy):
    more = privacy | {"records_per_unit": 3, "run": "r-1"}
    assert checked_statement(more, allow_void=False) == more


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_needed_and_typed(privacy, name):
    with pytest.raises(InvalidRequest, match=name):
        checked_statement({key: privacy[key] for key in privacy if key != name}, allow_void=True)
    with pytest.raises(InvalidRequest, match=name):
        checked_statement(privacy | {name: None}, allow_void=True)


@pytest.mark.parametrize(
    "change",
    [
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"epsilon": {}},
        {"epsilon": {"rdp": math.inf}},
        {"epsilon": {"rdp": math.nan}},
        {"epsilon": {"rdp": -0.1}},
        {"epsilon": {"rdp": None}},
        {"epsilon": {"rdp": True}},
        {"epsilon": {"rdp": "1"}},
        {"mechanisms": []},
        {"more": math.nan},
        {"more": object()},
    ],
)
def test_what_is_no_guarantee_is_refused(privacy, change):
    with pytest.raises(InvalidRequest):
        checked_statement(privacy | change, allow_void=False)


def test_a_void_statement_keeps_no_epsilon(privacy):
    statement = checked_statement(privacy | {"void": True}, allow_void=True)
    assert statement["epsilon"] == {"rdp": None, "prv": None, "pld": None}
    assert privacy["epsilon"]["rdp"] == 9.9959


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"{}", b'{"unit": 1}'])
def test_a_garbled_file_breaks_integrity(tmp_path, text):
    (tmp_path / "privacy.json").write_bytes(text)
    with pytest.raises(IntegrityBroken, match=r"privacy\.json"):
        read_statement(tmp_path)
