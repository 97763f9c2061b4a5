import json
import shutil

import pytest

from pipeline.audit.ledger import audit
from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable
from privacy.ledger import Head, Ledger
from synth.checkpoint import Checkpoint, save


def sentences(house, subject=None):
    found = audit(house.home, None if subject is None else str(subject))
    told = [*found.files, *map(str, found.ledger.findings)]
    assert found.ok == (not told)
    return told


def rewrite(folder, **changes):
    """Change privacy.json and write it in its canonical form, as a careful forger would."""
    path = folder / "privacy.json"
    said = {**json.loads(path.read_text()), **changes}
    text = json.dumps(said, sort_keys=True, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def cut_off(tamper, house, after):
    tamper(house, f"DELETE FROM umbra_ledger WHERE seq > {after}")


def test_what_is_sound_passes(exported):
    house, run, folder = exported
    assert sentences(house) == []
    assert sentences(house, run.run_id) == []
    assert sentences(house, run.path) == []
    assert sentences(house, folder) == []


def test_every_epsilon_is_computed_again(exported):
    house, run, _ = exported
    (dataset,) = audit(house.home, run.run_id).ledger.datasets
    assert dataset.spent.rdp == pytest.approx(house.budget.odometer("blots").spent, rel=1e-2)
    assert dataset.spent.pld <= dataset.spent.rdp


def test_both_formats_pass(finished, tmp_path):
    house, run = finished
    house.export(run, tmp_path / "images", "images")
    house.export(run, tmp_path / "parquet")
    assert sentences(house, tmp_path / "images") == []
    assert sentences(house, tmp_path / "parquet") == []


def test_a_row_that_was_altered(exported, tamper):
    house, run, folder = exported
    tamper(house, "UPDATE umbra_ledger SET body = replace(body, '\"steps\":4', '\"steps\":1')")
    for subject in (None, run.run_id, folder):
        assert any("altered" in sentence for sentence in sentences(house, subject))


def test_a_shard_of_the_run_that_was_altered(exported):
    house, run, _ = exported
    shard = next((run.release / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (sentence,) = sentences(house, run.run_id)
    assert shard.name in sentence and sentence.startswith("changed")


def test_images_that_were_removed(exported):
    house, run, _ = exported
    (run.release / "manifest.json").unlink()
    assert any("manifest.json is missing" in s for s in sentences(house, run.run_id))


def test_a_shard_of_the_export_that_was_altered(exported):
    house, _, folder = exported
    shard = next((folder / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (sentence,) = sentences(house, folder)
    assert shard.name in sentence


def test_an_export_with_another_manifest(exported):
    """Everything within the folder fits together; only the ledger knows better."""
    house, _, folder = exported
    card = folder / "README.md"
    old = card.read_bytes()
    new = old.replace(b"synthetic", b"real-life", 1)
    card.write_bytes(new)
    import hashlib

    manifest = folder / "manifest.json"
    text = manifest.read_text()
    text = text.replace(hashlib.sha256(old).hexdigest(), hashlib.sha256(new).hexdigest())
    manifest.write_text(text)
    rewrite(folder, manifest_sha256=hashlib.sha256(manifest.read_bytes()).hexdigest())
    (sentence,) = sentences(house, folder)
    assert "records no export of this manifest" in sentence


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: {"epsilon": {**s["epsilon"], "rdp": 0.5}}, "states ε = 0.5 by RDP"),
        (lambda s: {"epsilon": {**s["epsilon"], "pld": s["epsilon"]["pld"] * 0.99}}, "by PLD"),
        (lambda s: {"epsilon": {"mine": 0.1}}, "other accountants"),
        (lambda s: {"delta": 1e-9}, "does not state the delta"),
        (lambda s: {"records": 10**6}, "does not state the records"),
        (lambda s: {"unit": "one hospital"}, "does not state the unit"),
        (lambda s: {"dataset": "mnist"}, "does not state the dataset"),
        (lambda s: {"void": True, "epsilon": {"rdp": None}}, "does not state the void"),
        (
            lambda s: {"mechanisms": [{**s["mechanisms"][0], "noise_multiplier": 99.0}]},
            "does not state the mechanisms",
        ),
        (lambda s: {"certified_by": "me"}, "which an export does not have"),
        *(
            (lambda s, part=part: {"steps": {**s["steps"], **part}}, "states other steps")
            for part in ({"planned": 9}, {"charged": 3}, {"trained": 5}, {"trained": -1}, {"x": 1})
        ),
        (lambda s: {"guarantees": []}, "other guarantees"),
        (lambda s: {"guarantees": [{**s["guarantees"][0], "epsilon": 0.5}]}, "other guarantees"),
        (lambda s: {"guarantees": [{**s["guarantees"][0], "records": 9}]}, "other guarantees"),
        (lambda s: {"guarantees": ["all"]}, "other guarantees"),
        (lambda s: {"attack": []}, "power of attacks"),
        (lambda s: {"attack": "none"}, "power of attacks"),
        (lambda s: {"attack": [{**s["attack"][0], "gdp_mu": 0.1}]}, "power of attacks"),
        (lambda s: {"attack": [{**s["attack"][0], "meaning": "No."}]}, "power of attacks"),
        *(
            (lambda s, part=part: {"attack": [{**s["attack"][0], **part}]}, "power of attacks")
            for part in ({"power": {"0.1": 0.1}}, {"power": None}, {"records": 2}, {"more": 1})
        ),
        (lambda s: {"reservation": "r-1"}, "no reservation"),
        (lambda s: {"head_hash": "5:" + "0" * 64}, "history changed"),
        (lambda s: {"head_hash": "x"}, "names no head"),
    ],
)
def test_a_promise_that_was_improved(exported, change, told):
    house, _, folder = exported
    rewrite(folder, **change(json.loads((folder / "privacy.json").read_text())))
    found = sentences(house, folder)
    assert any(told in sentence for sentence in found), found


def test_a_promise_in_another_form(exported):
    house, _, folder = exported
    path = folder / "privacy.json"
    path.write_text(path.read_text() + " ")
    assert sentences(house, folder) == ["changed: privacy.json is not as it was written"]


def test_a_promise_that_is_gone(exported):
    house, _, folder = exported
    (folder / "privacy.json").unlink()
    assert sentences(house, folder) == ["missing: privacy.json"]


def test_a_ledger_cut_off_before_the_export(exported, tamper):
    house, run, folder = exported
    export_row = house.budget.ledger.head().seq
    cut_off(tamper, house, export_row - 1)
    # The export knows the head before its own row and misses its record ...
    assert any("records no export" in s for s in sentences(house, folder))
    # ... and the run remembers the row itself.
    for subject in (None, run.run_id):
        (sentence,) = sentences(house, subject)
        assert f"row {export_row}, which is gone" in sentence


def test_a_ledger_cut_off_before_the_reservation(exported, tamper):
    house, run, folder = exported
    cut_off(tamper, house, 3)
    for subject in (None, run.run_id, folder):
        assert any("rows were cut off" in sentence for sentence in sentences(house, subject))


def test_a_ledger_that_was_made_anew(exported):
    """Its chain is perfect and its budgets are full again; the runs remember, as the home does."""
    house, run, folder = exported
    witness = house.home.witness_path.read_text()
    for path in (house.home.witness_path, *house.home.path.glob("ledger.db*")):
        path.unlink()
    house.budget.declare("blots", 8.5, 1e-3)
    assert any("history changed" in s or "gone" in s for s in sentences(house))
    house.home.witness_path.write_text(witness)
    assert any("used the ledger" in sentence for sentence in sentences(house))
    assert any("no reservation" in sentence for sentence in sentences(house, run.run_id))
    with pytest.raises(InvalidRequest, match="was exported under ledger"):
        audit(house.home, str(folder))


def test_a_checkpoint_remembers_too(finished, tamper):
    house, run = finished
    (run.internal / "ledger-heads").unlink()
    head = house.budget.ledger.head()
    nothing = {"model": {}, "ema": {}, "optimizer": {}}
    save(
        run.internal / "checkpoints",
        Checkpoint(step=4, attempt=1, phase="private", ledger_head=str(head), **nothing),
    )
    assert sentences(house) == []
    cut_off(tamper, house, head.seq - 1)
    assert any(f"row {head.seq}, which is gone" in sentence for sentence in sentences(house))


def test_a_damaged_record_of_heads(finished):
    house, run = finished
    (run.internal / "ledger-heads").write_text("5:abc\n")
    for subject in (None, run.run_id):
        (sentence,) = sentences(house, subject)
        assert "ledger-heads is damaged" in sentence


def test_the_run_of_another_reservation(finished, blots_spec):
    house, run = finished
    other = house.home.new_run(blots_spec(("ddim", "churn")))
    other.update(reservation_id=run.state().reservation_id)
    shutil.copytree(run.release, other.release, dirs_exist_ok=True)
    found = sentences(house, other.run_id)
    assert any("made for another run" in sentence for sentence in found)
    assert any("for another spec" in sentence for sentence in found)


def test_a_spec_that_was_changed(finished):
    house, run = finished
    run.spec_path.write_text(run.spec_path.read_text().replace("ddim", "churn"))
    assert any("changed after the run" in s or "spec" in s for s in sentences(house, run.run_id))


def test_images_without_a_reservation(finished, blots_spec):
    house, run = finished
    other = house.home.new_run(blots_spec())
    shutil.copytree(run.release, other.release, dirs_exist_ok=True)
    assert "images were made without any reservation" in sentences(house, other.run_id)


def test_a_run_that_made_nothing(house, blots_spec):
    reserved, empty = house.reserve(blots_spec()), house.home.new_run(blots_spec())
    assert sentences(house, reserved.run_id) == []
    with pytest.raises(InvalidRequest, match="made nothing"):
        audit(house.home, empty.run_id)


def test_a_damaged_state(finished):
    house, run = finished
    run.state_path.write_text("{")
    with pytest.raises(IntegrityBroken, match=r"state\.json is damaged"):
        audit(house.home, run.run_id)
    assert sentences(house) == []  # the ledger can be audited all the same


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ("blotz", "there is no run 'blotz'"),
        ("some/where", "there is no folder some/where"),
        (".", "is not an export"),
    ],
)
def test_no_such_thing(finished, tmp_path, monkeypatch, subject, told):
    house, _ = finished
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InvalidRequest, match=told):
        audit(house.home, subject)


def test_no_ledger(house):
    for path in house.home.path.glob("ledger.db*"):
        path.unlink()
    with pytest.raises(IntegrityBroken, match=r"is gone or was emptied: .* up to row 2"):
        audit(house.home)
    house.home.witness_path.unlink()
    with pytest.raises(LedgerUnavailable, match="There is no ledger"):
        audit(house.home)


def test_it_is_plain_json(exported):
    house, run, _ = exported
    record = audit(house.home, run.run_id).to_dict()
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(record, allow_nan=False))
    assert record["ok"] is True
    assert Head(**record["ledger"]["head"]) == house.budget.ledger.head()


def test_a_rollback_that_no_run_remembers(house, tamper):
    """A declaration is in no run's folder; the home's own witness knows it."""
    head = house.budget.ledger.head()
    house.budget.declare("other", 1.0, 1e-3)
    assert sentences(house) == []
    cut_off(tamper, house, head.seq)
    (sentence,) = sentences(house)
    assert f"row {head.seq + 1}, which is gone" in sentence


def signed(house):
    """Sign the house's ledger from now on; return the public key."""
    return Ledger.open(house.home.ledger_url, house.key).start_signing(bytes(range(32)))


def test_signatures_are_held_against_a_key_from_elsewhere(exported, tmp_path):
    house, run, folder = exported
    assert audit(house.home).signed_by is None
    key = signed(house)
    (tmp_path / "key.pub").write_text(key + "\n")
    for subject in (None, run.run_id, str(folder)):
        found = audit(house.home, subject, str(tmp_path / "key.pub"))
        assert (found.ok, found.signed_by) == (True, key)
        assert audit(house.home, subject, key).ok
        assert not audit(house.home, subject, "ab" * 32).ok
    with pytest.raises(InvalidRequest):
        audit(house.home, public_key="not a key")


def test_a_ledger_that_nobody_signed_does_not_pass_as_signed(exported):
    house, run, folder = exported
    for subject in (None, run.run_id, str(folder)):
        assert not audit(house.home, subject, "ab" * 32).ok


def test_a_run_that_pays_for_its_holdout_too(house, blots_spec):
    run = house.reserve(
        blots_spec(
            ("    public: true\n", "    public: false\n"),
            ("classifiers: [logreg, mlp]", "classifiers: [logreg]\n  release: dp"),
        )
    )
    assert sentences(house, run.run_id) == []
    parts = {r.partition for r in audit(house.home, run.run_id).ledger.reservations}
    assert parts == {"train", "holdout"}
    run.update(holdout_reservation_id="r-1")
    assert sentences(house, run.run_id) == [
        "the ledger holds no reservation r-1, which the run names"
    ]


def test_the_ledger_says_who_and_what_left(exported):
    house, run, folder = exported
    (reservation,) = audit(house.home, run.run_id).ledger.reservations
    assert (reservation.run_id, reservation.author) == (run.run_id, house.home.author)
    manifest = json.loads((folder / "privacy.json").read_text())["manifest_sha256"]
    assert reservation.exports == (manifest,)
    assert reservation.charged == reservation.reserved == {"dp-sgd": 4}
