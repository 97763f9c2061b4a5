"""Who lacks the private key can neither append nor write the history anew."""

import sqlite3
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.errors import InvalidRequest
from privacy.keys import load_or_create_key
from privacy.ledger import Kind, Ledger
from privacy.ledger.chain import Signer, replay, row_hash
from privacy.ledger.rows import canonical

SEED, OTHER = bytes([7]) * 32, bytes([8]) * 32


def public(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex()


def append(ledger, **body):
    with ledger.transaction() as t:
        return t.append(Kind.DECLARE, body)


def problems(rows, **options):
    return [finding.problem for finding in replay(rows, **options)]


@pytest.fixture
def signed(any_ledger):
    """Row 1 genesis, 2 unsigned, 3 signer, 4 and 5 signed."""
    append(any_ledger, a=1)
    any_ledger.start_signing(SEED)
    append(any_ledger, a=2)
    append(any_ledger, a=3)
    return any_ledger


def rehashed(rows):
    """The rows with their chain made whole again, as anybody can."""
    done, previous = [], "0" * 64
    for seq, row in enumerate(rows, 1):
        moved = replace(row, seq=seq, prev_hash=previous)
        done.append(replace(moved, hash=row_hash(moved)))
        previous = done[-1].hash
    return done


def signed_by(seed, ledger_id, rows):
    """The rows signed anew by another key, which the signer row then names."""
    signer, done, previous = Signer.from_seed(seed), [], "0" * 64
    for row in rows:
        body = row.body if row.kind != "signer" else canonical(signer.body(ledger_id, previous))
        moved = replace(row, body=body, prev_hash=previous)
        moved = replace(moved, hash=row_hash(moved))
        if row.signature is not None:
            moved = replace(moved, signature=signer.sign(ledger_id, moved.hash))
        done.append(moved)
        previous = moved.hash
    return done


def test_every_row_from_the_first_signer_on_bears_a_signature_that_openssl_accepts(signed):
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public(SEED)))
    rows = list(signed.rows())
    assert [row.signature is None for row in rows] == [True, True, False, False, False]
    for row in rows[2:]:
        message = f'["umbra ledger signature",1,"{signed.ledger_id}","{row.hash}"]'
        key.verify(bytes.fromhex(row.signature), message.encode())
    assert (rows[2].kind, rows[2].content["public_key"]) == ("signer", public(SEED))
    assert signed.public_key == public(SEED)
    assert signed.verify() == []
    assert signed.verify(public_key=public(SEED)) == []


def test_a_ledger_without_signatures_verifies_as_before(any_ledger):
    append(any_ledger)
    assert any_ledger.public_key is None
    assert any_ledger.verify() == []
    (finding,) = any_ledger.verify(public_key=public(SEED))
    assert "is not signed" in finding.problem


def test_nobody_appends_without_the_key_in_force(signed, again):
    head = signed.head()
    for options in ({}, {"signing_key": OTHER}):
        with pytest.raises(InvalidRequest, match=f"signed by the key {public(SEED)}"):
            append(again(signed, **options))
        with pytest.raises(InvalidRequest, match=f"signed by the key {public(SEED)}"):
            again(signed, **options).start_signing(bytes([9]) * 32)
    assert signed.head() == head
    append(again(signed, signing_key=SEED))
    assert signed.verify() == []


def test_a_process_that_was_open_before_is_held_to_it_too(any_ledger, again):
    early = again(any_ledger)
    append(early)
    any_ledger.start_signing(SEED)
    with pytest.raises(InvalidRequest, match="signed by the key"):
        append(early)
    signed_early = again(any_ledger, signing_key=SEED)
    any_ledger.start_signing(OTHER)
    with pytest.raises(InvalidRequest, match=f"signed by the key {public(OTHER)}"):
        append(signed_early)
    assert [row.kind for row in any_ledger.rows()] == ["genesis", "declare", "signer", "signer"]
    assert any_ledger.verify() == []


def test_whoever_signs_takes_no_unsigned_ledger(any_ledger, again):
    """An unsigned history in the place of a signed one must not be gone on with in silence."""
    ours = again(any_ledger, signing_key=SEED)
    with pytest.raises(InvalidRequest, match="is not signed"):
        append(ours)
    ours.start_signing(SEED)
    append(ours)
    assert any_ledger.verify(public_key=public(SEED)) == []


def test_signing_is_begun_once(signed, again):
    head = signed.head()
    assert signed.start_signing(SEED) == public(SEED)
    assert again(signed).start_signing(SEED) == public(SEED)
    assert signed.head() == head


def test_processes_that_begin_at_once_append_one_row(any_ledger, again, in_processes):
    def work(_):
        again(any_ledger).start_signing(SEED)
        return 0

    assert in_processes(8, work) == [0] * 8
    assert [row.kind for row in any_ledger.rows()] == ["genesis", "signer"]


def test_the_old_key_hands_over_to_the_new_one(signed, again):
    signed.start_signing(OTHER)
    for key in (SEED, OTHER):  # also while the new one has signed nothing but its own row
        assert signed.verify(public_key=public(key)) == []
    append(signed, a=4)
    append(again(signed, signing_key=OTHER), a=5)
    with pytest.raises(InvalidRequest, match="signed by the key"):
        append(again(signed, signing_key=SEED))
    for key in (SEED, OTHER):
        assert signed.verify(public_key=public(key)) == []
    assert signed.public_key == public(OTHER)
    with pytest.raises(InvalidRequest, match="was replaced"):
        signed.start_signing(SEED)


def test_a_lost_answer_to_a_rotation_is_repeated(signed, again):
    again(signed, signing_key=SEED).start_signing(OTHER)
    head = signed.head()
    late = again(signed, signing_key=SEED)
    assert late.start_signing(OTHER) == public(OTHER)
    append(late)
    assert signed.head().seq == head.seq + 1
    assert signed.verify() == []


def test_an_altered_row_with_a_whole_chain_is_found(signed):
    rows = list(signed.rows())
    for seq in range(1, 6):
        lie = [replace(r, created_at="then") if r.seq == seq else r for r in rows]
        assert any("signature" in p or "showed" in p for p in problems(rehashed(lie))), seq


def test_a_removed_or_foreign_signature_is_found(signed):
    rows = list(signed.rows())
    for seq in (3, 4, 5):
        own, foreign = rows[seq - 1].signature, rows[2 + (seq + 1) % 3].signature
        for signature in (None, "", foreign, own.upper(), own + "0", f" {own[1:]}"):
            lie = [replace(r, signature=signature) if r.seq == seq else r for r in rows]
            (problem,) = problems(lie)
            assert "signature" in problem
    early = [replace(r, signature=rows[4].signature) if r.seq == 2 else r for r in rows]
    assert ["no key was in force" in p for p in problems(early)] == [True]


def test_a_signature_does_not_hold_in_another_ledger(signed):
    rows = list(signed.rows())
    genesis = replace(rows[0], body=rows[0].body.replace(signed.ledger_id, "0" * 32))
    moved = rehashed([genesis, *rows[1:]])
    assert len([p for p in problems(moved) if "not by the key" in p]) == 3
    # the row hash alone, without the ledger's id, was not what was signed
    bare = Ed25519PrivateKey.from_private_bytes(SEED).sign(rows[4].hash.encode()).hex()
    assert problems([*rows[:4], replace(rows[4], signature=bare)])


def test_an_unsigned_row_at_the_end_is_found(signed):
    rows = list(signed.rows())
    extra = replace(rows[4], seq=6, claim=None, signature=None, prev_hash=rows[4].hash)
    (problem,) = problems([*rows, replace(extra, hash=row_hash(extra))])
    assert "bears no signature" in problem


def test_a_history_signed_by_another_key_is_found_by_the_pinned_one_only(signed):
    rows = signed_by(OTHER, signed.ledger_id, signed.rows())
    assert problems(rows) == []
    (problem,) = problems(rows, public_key=public(SEED))
    assert public(SEED) in problem
    assert public(OTHER) in problem


def test_a_history_without_its_signatures_is_found_by_the_pinned_key(signed):
    bare = [replace(r, signature=None) for r in signed.rows() if r.kind != "signer"]
    assert problems(rehashed(bare)) == []
    (problem,) = problems(rehashed(bare), public_key=public(SEED))
    assert "is not signed" in problem


def test_a_forger_cannot_hand_over_to_the_pinned_key(signed):
    """He may name it in a row, but cannot show that he has it, there or anywhere else."""
    rows = signed_by(OTHER, signed.ledger_id, list(signed.rows())[:3])
    (real,) = (row for row in signed.rows() if row.kind == "signer")
    for body in (real.body, real.body.replace(real.content["possession"], "0" * 128)):
        row = replace(real, seq=4, body=body, claim=None, prev_hash=rows[2].hash)
        row = replace(row, hash=row_hash(row))
        signature = Signer.from_seed(OTHER).sign(signed.ledger_id, row.hash)
        found = problems([*rows, replace(row, signature=signature)], public_key=public(SEED))
        assert any("nobody showed" in p for p in found)
        assert any(public(SEED) in p for p in found)


def test_rewriting_the_file_without_the_key_is_found(ledger, tmp_path):
    append(ledger, a=1)
    ledger.start_signing(SEED)
    append(ledger, epsilon=1.0)
    rows = list(ledger.rows())
    forged = rehashed([*rows[:3], replace(rows[3], body='{"epsilon":9.0}')])
    connection = sqlite3.connect(tmp_path / "ledger.db")
    trigger = connection.execute(
        "SELECT sql FROM sqlite_master WHERE name = 'umbra_ledger_no_update'"
    ).fetchone()[0]
    connection.execute("DROP TRIGGER umbra_ledger_no_update")
    connection.execute(
        "UPDATE umbra_ledger SET body = ?, hash = ? WHERE seq = 4",
        (forged[3].body, forged[3].hash),
    )
    connection.execute(trigger)
    connection.commit()
    connection.close()
    assert ["signature" in f.problem for f in Ledger.open(tmp_path / "ledger.db").verify()] == [
        True
    ]


@pytest.mark.parametrize("text", ["", "0" * 63, "G" * 64, "A" * 64, "0" * 65, " " + "0" * 63])
def test_a_pinned_key_is_64_hex_digits(ledger, text):
    with pytest.raises(InvalidRequest, match="64 lower-case hex digits"):
        ledger.verify(public_key=text)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33), "0" * 32, None])
def test_a_signing_key_has_32_bytes(ledger, seed):
    with pytest.raises(InvalidRequest, match="32 bytes"):
        ledger.start_signing(seed)
    assert ledger.head().seq == 1


def test_the_private_key_shows_nowhere(tmp_path, ledger):
    seed = load_or_create_key(tmp_path / "signing.key")
    ledger.start_signing(seed)
    append(ledger)
    assert seed.hex() not in repr(Signer.from_seed(seed))
    for path in tmp_path.glob("ledger.db*"):
        assert seed not in path.read_bytes()
        assert seed.hex().encode() not in path.read_bytes()


def test_the_public_key_is_the_one_of_rfc_8032():
    """Its first test vector."""
    seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    expected = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert Signer.from_seed(bytes.fromhex(seed)).public_key == expected
