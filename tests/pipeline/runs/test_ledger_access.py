"""Opening a home's ledger: keys, signing, the witness, and what is refused."""

import shutil

import pytest

from pipeline.home import Home
from pipeline.runs.ledger_access import (
    LedgerAccess,
    open_budget,
    record_head,
    start_signing,
    verify_ledger_ancestry,
)
from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable
from privacy.ledger import Ledger


def copied(house, to):
    shutil.copytree(house.home.path, to)
    return to


def rolled_back(house, copy):
    for path in house.home.path.glob("ledger.db*"):
        path.unlink()
    for path in copy.glob("ledger.db*"):
        shutil.copy(path, house.home.path)


def test_rows_say_who(house, monkeypatch):
    house.budget.declare("more", 1.0, 1e-5)
    *_, row = house.budget.ledger.rows()
    assert row.author == house.home.author and "@" in row.author
    named = Home.locate({"UMBRA_HOME": str(house.home.path), "UMBRA_AUTHOR": "Dr. Ó"})
    open_budget(named).declare("most", 1.0, 1e-5)
    assert [r.author for r in house.budget.history("most")] == ["Dr. Ó"]


def test_no_key_is_made_where_the_ledger_cannot_be_asked(tmp_path):
    url = "postgresql://nobody@127.0.0.1:1/none"
    home = Home.locate({"UMBRA_HOME": str(tmp_path), "UMBRA_LEDGER_URL": url})
    with pytest.raises(LedgerUnavailable):
        LedgerAccess.of(home)
    assert not home.key_path.exists()


def test_an_older_copy_of_the_ledger_is_refused(house, tmp_path):
    copy = copied(house, tmp_path / "copy")
    house.budget.declare("more", 1.0, 1e-5)
    rolled_back(house, copy)
    with pytest.raises(IntegrityBroken, match="rolled back"):
        house.budget.declare("again", 1.0, 1e-5)


def test_a_run_does_not_go_on_under_an_older_ledger(house, blots_spec, tmp_path):
    run = house.reserve(blots_spec())
    copy = copied(house, tmp_path / "copy")
    house.charge(run, "dp-sgd", 2)
    record_head(run, house.budget.ledger.head())
    verify_ledger_ancestry(run, house.budget.ledger)
    rolled_back(house, copy)
    house.home.witness_path.unlink()  # gone with the machine, say: the run still knows
    with pytest.raises(IntegrityBroken, match="rolled back or replaced"):
        verify_ledger_ancestry(run, house.budget.ledger)


class TestSigning:
    def test_rows_are_signed_from_then_on(self, house):
        public_key, path = start_signing(house.home)
        assert path.stat().st_mode & 0o777 == 0o600
        house.budget.declare("more", 1.0, 1e-5)
        ledger = Ledger.open(house.home.ledger_url)
        assert ledger.public_key == public_key
        assert ledger.verify(public_key=public_key) == []
        *_, row = ledger.rows()
        assert row.signature

    def test_another_key_takes_over(self, house):
        first, _ = start_signing(house.home)
        second, _ = start_signing(house.home)
        assert first != second == house.budget.ledger.public_key
        house.budget.declare("more", 1.0, 1e-5)
        for pinned in (first, second):
            assert house.budget.ledger.verify(public_key=pinned) == []

    def test_without_the_key_nothing_can_be_appended(self, house):
        _, path = start_signing(house.home)
        path.unlink()
        before = house.budget.ledger.head()
        with pytest.raises(InvalidRequest):
            house.budget.declare("more", 1.0, 1e-5)
        with pytest.raises(InvalidRequest):
            start_signing(house.home)
        assert house.budget.ledger.head() == before

    @pytest.mark.parametrize("signed_before", [False, True])
    def test_a_crash_before_the_key_is_in_its_place(self, house, monkeypatch, signed_before):
        from pathlib import Path

        if signed_before:
            start_signing(house.home)

        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", die)
            with pytest.raises(KeyboardInterrupt):
                start_signing(house.home)
        public_key, _ = start_signing(house.home)
        assert house.budget.ledger.public_key == public_key
        house.budget.declare("more", 1.0, 1e-5)
