"""Which sections there are, and which are chosen."""

import json

import pytest

from benchmarks import __main__ as main
from benchmarks import cases


def test_titles_are_unique_and_kinds_known():
    for effort in (cases.QUICK, cases.FULL):
        with cases.sections(effort) as every:
            titles = [section.title for section in every]
            assert len(set(titles)) == len(titles)
            assert {section.kind for section in every} == set(main._KINDS)


def test_sections_are_chosen_by_their_titles(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "--list", "--only", "^Ledger"])
    main.main()
    assert capsys.readouterr().out.splitlines() == ["Ledger: a charge", "Ledger: an audit"]


def test_nothing_chosen_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "--only", "no such section"])
    with pytest.raises(SystemExit):
        main.main()
    assert "--list" in capsys.readouterr().err


def test_what_was_measured_is_written_and_drawn(monkeypatch, tmp_path, capsys):
    target = tmp_path / "bench.json"
    options = ["--quick", "--only", "Ledger: a charge", "--json", str(target)]
    monkeypatch.setattr("sys.argv", ["bench", *options])
    main.main()
    report = json.loads(target.read_text())
    assert [section["title"] for section in report["sections"]] == ["Ledger: a charge"]
    assert "a charge" in capsys.readouterr().out
    assert target.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
