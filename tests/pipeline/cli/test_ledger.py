import pytest

from privacy.ledger import Ledger


def test_the_head_to_be_kept_elsewhere(umbra, house):
    found = umbra("ledger", "head", "--json").json
    assert found["head"] == str(house.budget.ledger.head())
    assert found["ledger"] == house.budget.ledger.ledger_id
    assert found["public_key"] is None
    assert "not signed" in umbra("ledger", "head").out


def test_sign_and_audit_against_the_key(umbra, house):
    key = umbra("ledger", "sign", "--json").json["public_key"]
    house.budget.declare("more", 1.0, 1e-5)
    assert Ledger.open(house.home.ledger_url).public_key == key
    assert umbra("ledger", "head", "--json").json["public_key"] == key
    shown = umbra("ledger", "sign")
    assert shown.code == 0 and f"--public-key {house.budget.ledger.public_key}" in shown.out
    secret = house.home.signing_key_path.read_bytes()
    assert secret.hex() not in shown.out + shown.err


def test_a_signed_ledger_without_its_key(umbra, house):
    umbra("ledger", "sign")
    house.home.signing_key_path.unlink()
    result = umbra("budget", "declare", "more", "--epsilon", "1", "--delta", "1e-5")
    assert result.code == 2 and "sign" in result.err
    assert umbra("budget", "show").code == 0


@pytest.mark.parametrize(
    "command",
    [
        ("ledger", "head"),
        ("ledger", "sign"),
        ("budget", "close", "digits"),
        ("budget", "accept-overlap", "a", "b"),
        ("budget", "history", "digits"),
    ],
    ids=" ".join,
)
def test_where_there_is_no_ledger_none_is_made(umbra, tmp_path, command):
    result = umbra(*command)
    assert result.code == 1 and "There is no ledger" in result.err
    assert not (tmp_path / "home").exists()
