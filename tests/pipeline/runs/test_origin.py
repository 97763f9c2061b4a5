"""What a run's artefacts are bound to: nothing that another run paid for is used under its ε."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save as to_safetensors

from pipeline.audit.ledger import audit_run
from pipeline.progress import SilentProgress
from pipeline.runs import engine, origin
from privacy.errors import IntegrityBroken
from synth.checkpoint import Checkpoint, newest, save
from synth.data.manifest import load_manifest
from synth.data.shards import Shard, encode_png, shard_mark, write_shard
from synth.origin import Origin, seal_tensors, tensors_mark, weights_mark
from synth.storage import write_bytes

SEEDED = ("  delta: 1e-3", "  delta: 1e-3\n  seed: 3")


@pytest.fixture
def trained(house, blots_spec):
    """Make a run that trained up to a checkpoint and stopped."""

    def make(*changes, sealed=True, value=1.0, epsilon=1):
        run = house.reserve(blots_spec(("epsilon: 8", f"epsilon: {epsilon}"), *changes))
        if not sealed:
            run.update(sealed=False)
        reservation = house.budget.reservation(run.state().reservation_id)
        attempt = house.budget.begin_attempt(reservation.id, f"first-{run.run_id}")
        paid = house.budget.charge(reservation.id, "dp-sgd", 2, attempt, f"two-{run.run_id}")
        weights = {"w": torch.full((2,), value)}
        made = Checkpoint(2, attempt, "dp-sgd", weights, weights, {}, str(paid.head))
        save(run.checkpoints, made, origin.origin_of(run, reservation) if sealed else None)
        return run

    return make


def _check(house, run):
    reservation = origin.require_reservation(run, run.spec(), house.budget)
    return origin.require_checkpoint(run, house.budget, reservation)


def _put(run, other):
    """Put the checkpoints of `other` in the place of the run's own."""
    shutil.rmtree(run.checkpoints)
    shutil.copytree(other.checkpoints, run.checkpoints)


class TestCheckpoint:
    def test_the_runs_own_is_gone_on_from(self, house, trained):
        assert _check(house, trained()) == _check(house, trained(sealed=False)) == ""

    @pytest.mark.parametrize("sealed", [True, False])
    @pytest.mark.parametrize("void", [True, False])
    def test_that_of_another_run_is_refused(self, house, trained, sealed, void):
        honest = trained(sealed=sealed)
        changes = [SEEDED] if void else []
        _put(honest, trained(*changes, sealed=sealed, value=9.0, epsilon=2))
        with pytest.raises(IntegrityBroken) as refused:
            _check(house, honest)
        assert refused.value.exit_code == 4

    def test_a_resume_of_it_is_refused_before_anything_is_charged(
        self, house, trained, monkeypatch
    ):
        def started(*_):
            raise AssertionError("the cluster was started")

        monkeypatch.setattr(engine, "_environment", started)
        honest = trained()
        _put(honest, trained(SEEDED, epsilon=2))
        before = house.kinds()
        with pytest.raises(IntegrityBroken, match="is not of run"):
            engine.execute(honest, house.home, SilentProgress())
        assert house.kinds() == before and honest.state().status == "failed"

    def test_without_its_mark_it_is_refused(self, house, trained):
        run = trained()
        bare = newest(run.checkpoints).checkpoint
        save(run.checkpoints, bare)
        with pytest.raises(IntegrityBroken, match="not stated"):
            _check(house, run)

    def test_a_mark_that_was_copied_seals_nothing_else(self, house, trained):
        run = trained()
        found = newest(run.checkpoints).checkpoint
        other = {"w": torch.full((2,), 7.0)}
        record = run.checkpoints / "step-000002" / "checkpoint.json"
        facts = json.loads(record.read_bytes())["facts"]

        class Copied(Origin):
            def mark(self, digest):
                return facts

        forger = Copied("x", "x", "x", False, bytes(32))
        made = Checkpoint(2, 1, "dp-sgd", other, other, {}, found.ledger_head)
        save(run.checkpoints, made, forger)
        with pytest.raises(IntegrityBroken, match="was changed"):
            _check(house, run)

    @pytest.mark.parametrize("head", ["", "1:ab"])
    def test_one_that_no_charge_paid_for_is_refused(self, house, trained, head):
        run = trained(sealed=False)
        weights = {"w": torch.zeros(2)}
        save(run.checkpoints, Checkpoint(2, 1, "dp-sgd", weights, weights, {}, head))
        with pytest.raises(IntegrityBroken):
            _check(house, run)

    def test_of_an_attempt_that_did_not_pay_it_is_refused(self, house, trained):
        run = trained(sealed=False)
        found = newest(run.checkpoints).checkpoint
        made = Checkpoint(2, 2, "dp-sgd", found.model, found.ema, {}, found.ledger_head)
        save(run.checkpoints, made)
        with pytest.raises(IntegrityBroken, match="no charge of it by attempt 2"):
            _check(house, run)


class TestDamaged:
    @pytest.fixture
    def two(self, house, trained):
        """A run with checkpoints after two steps and after four."""
        run = trained()
        reservation = house.budget.reservation(run.state().reservation_id)
        paid = house.budget.charge(reservation.id, "dp-sgd", 2, 1, "two more")
        weights = {"w": torch.full((2,), 4.0)}
        made = Checkpoint(4, 1, "dp-sgd", weights, weights, {}, str(paid.head))
        save(run.checkpoints, made, origin.origin_of(run, reservation))
        return run

    def _damage(self, run, step):
        with (run.checkpoints / f"step-{step:06d}" / "model.safetensors").open("ab") as file:
            file.write(b"x")

    def test_the_newest_is_reported_and_skipped(self, house, two):
        self._damage(two, 4)
        note = _check(house, two)
        assert "step-000004" in note and "step-000002" not in note

    def test_with_no_sound_one_left_training_does_not_begin_anew_by_itself(self, house, two):
        self._damage(two, 2)
        self._damage(two, 4)
        with pytest.raises(IntegrityBroken, match="Restore one from a backup") as broken:
            _check(house, two)
        assert broken.value.exit_code == 4
        assert "step-000002" in str(broken.value) and "step-000004" in str(broken.value)


class TestReservation:
    def test_of_another_run_is_refused(self, house, trained):
        run, other = trained(), trained(epsilon=2)
        run.update(reservation_id=other.state().reservation_id)
        with pytest.raises(IntegrityBroken, match="was made for run"):
            _check(house, run)

    def test_for_another_spec_is_refused(self, house, trained, blots_spec):
        run = trained()
        changed = blots_spec(SEEDED)
        with pytest.raises(IntegrityBroken, match="with the spec"):
            origin.require_reservation(run, changed, house.budget)

    def test_that_says_otherwise_of_a_seed_is_refused(self, house, trained, blots_spec):
        run = trained()
        reservation = house.budget.reservation(run.state().reservation_id)

        class Told:
            def reservation(self, identity):
                # As from an old row, which does not tell the spec.
                return replace(reservation, void=True, spec=None)

        with pytest.raises(IntegrityBroken, match="and a seed"):
            origin.require_reservation(run, run.spec(), Told())


class TestWeights:
    def _require(self, house, run):
        reservation = house.budget.reservation(run.state().reservation_id)
        return origin.require_weights(run, house.budget, reservation)

    def test_of_a_finished_run_have_the_hash_in_the_ledger(self, finished):
        house, run = finished
        digest = hashlib.sha256((run.release / origin.WEIGHTS).read_bytes()).hexdigest()
        assert self._require(house, run) == digest
        assert house.budget.settled_weights(run.state().reservation_id) == digest

    def test_put_in_before_training_are_refused(self, house, blots_spec):
        run = house.reserve(blots_spec())
        write_bytes(run.release / origin.WEIGHTS, to_safetensors({"w": np.ones(1)}))
        with pytest.raises(IntegrityBroken, match="not stated"):
            self._require(house, run)

    def test_changed_after_settlement_are_refused_though_sealed(self, finished):
        house, run = finished
        sealed = origin.origin_of(run, house.budget.reservation(run.state().reservation_id))
        data = seal_tensors(to_safetensors({"w": np.ones(1)}), sealed)
        write_bytes(run.release / origin.WEIGHTS, data)
        with pytest.raises(IntegrityBroken, match="the ledger says"):
            self._require(house, run)
        assert not audit_run(house.budget.ledger, run).ok

    def test_of_an_older_version_are_taken_where_nothing_contradicts(self, house, blots_spec):
        run = house.reserve(blots_spec())
        run.update(sealed=False)
        write_bytes(run.release / origin.WEIGHTS, to_safetensors({"w": np.ones(1)}))
        assert self._require(house, run) is None

    def test_that_are_no_weights_are_refused(self, finished):
        house, run = finished
        for data in (b"", b"weights", b"\xff" * 20):
            write_bytes(run.release / origin.WEIGHTS, data)
            with pytest.raises(IntegrityBroken, match="missing or damaged"):
                self._require(house, run)


class TestShards:
    def test_carry_what_paid_for_them(self, finished):
        _, run = finished
        state, weights = run.state(), (run.release / origin.WEIGHTS).read_bytes()
        expected = {
            "run": run.run_id,
            "reservation": state.reservation_id,
            "spec": state.spec_sha256,
            "void": False,
            "weights": hashlib.sha256(weights).hexdigest(),
        }
        for entry in load_manifest(run.release).shards:
            assert shard_mark(run.release / entry.file) == expected

    def test_of_another_run_are_not_exported(self, house, blots_spec, tmp_path):
        honest, other = (
            house.finish(house.reserve(blots_spec(("epsilon: 8", f"epsilon: {epsilon}"))))
            for epsilon in (1, 2)
        )
        shutil.rmtree(honest.release)
        shutil.copytree(other.release, honest.release)
        with pytest.raises(IntegrityBroken, match="is not of run"):
            house.export(honest, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert not audit_run(house.budget.ledger, honest).ok

    def test_with_a_copied_mark_are_not_exported(self, finished, tmp_path):
        house, run = finished
        manifest = load_manifest(run.release)
        path = run.release / manifest.shards[-1].file
        shard = Shard(2, (1, 1))
        pngs = [encode_png(np.zeros((8, 8, 1), np.uint8))] * 2
        names, mark = manifest.class_names, shard_mark(path)
        entry = write_shard(run.release, shard, 3, pngs, class_names=names, mark=mark)
        replace(manifest, shards=(*manifest.shards[:-1], entry)).write(run.release)
        with pytest.raises(IntegrityBroken, match="is not what run"):
            house.export(run, tmp_path / "out")


def test_metadata_does_not_change_the_tensors():
    plain = to_safetensors({"b": np.arange(3.0), "a": np.ones((2, 2))})
    sealed = seal_tensors(plain, Origin("r", "s", "t", True, bytes(32)))
    mark, digest = tensors_mark(sealed)
    assert tensors_mark(plain) == (None, digest) and mark["void"] is True
    assert weights_mark(plain) is None and weights_mark(sealed)["void"] is True
    assert "seal" not in weights_mark(sealed)
