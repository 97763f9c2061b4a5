"""Whether a run's artefacts are its own: what its reservation paid for, and nothing else.

Runs begun by versions that sealed nothing are known by their state. Of those an artefact without a
mark is accepted where nothing contradicts it: a checkpoint must name a charge of the reservation as
the ledger's head, weights and shards must belong to a reservation that was settled without a hash.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from pipeline.runs.dataset_identity import RUN_KEY
from pipeline.runs.directory import RunDirectory
from pipeline.spec import Spec
from privacy.budget import Budget, Reservation
from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from privacy.keys import load_or_create_key
from privacy.ledger import Head, Kind
from synth.data.manifest import ShardEntry, file_sha256, load_manifest
from synth.data.shards import shard_mark
from synth.origin import Origin, tensors_mark
from synth.storage import write_json

WEIGHTS = Path("model/weights.safetensors")
_OWN = "Put the run's own back from a backup, or submit the spec as a new run"


def origin_of(run: RunDirectory, reservation: Reservation) -> Origin:
    """Return what the run's artefacts are sealed as."""
    key = load_or_create_key(run.internal / RUN_KEY)
    state = run.state()
    return Origin(
        run.run_id, reservation.id, state.spec_sha256, reservation.void, key, state.sealed
    )


def require_reservation(run: RunDirectory, spec: Spec, budget: Budget) -> Reservation:
    """Return the reservation that pays for a run.

    Raises:
        IntegrityBroken: it was made for another run or spec, or does not say what the spec says
            of a seed.
    """
    identity = run.state().reservation_id
    if identity is None:
        raise InvalidRequest(f"run {run.run_id} never reserved a budget")
    reservation = budget.reservation(identity)
    # Old rows do not tell the spec.
    recorded = reservation.spec or spec.sha256()
    expected = (run.run_id, spec.sha256(), spec.privacy.seed is not None)
    if (reservation.run_id, recorded, reservation.void) != expected:
        raise IntegrityBroken(
            f"reservation {identity} was made for run {reservation.run_id} with the spec {recorded}"
            f"{' and a seed' if reservation.void else ''}; run {run.run_id} with the spec "
            f"{spec.sha256()} names it as its own. {_OWN}"
        )
    return reservation


def require_checkpoint(run: RunDirectory, budget: Budget, reservation: Reservation) -> str:
    """Check what a training would go on from; return a note on damaged checkpoints, if any.

    Raises:
        IntegrityBroken: the newest sound checkpoint is not this run's, or none of several is sound.
    """
    from synth.checkpoint import newest, require_own  # loads torch

    search = newest(run.checkpoints)
    found = search.checkpoint
    if found is None and search.skipped:
        # Their steps are charged: starting afresh would train for the few that are left.
        raise IntegrityBroken(
            f"no checkpoint in {run.checkpoints} is sound: {'; '.join(search.skipped)}. Restore "
            "one from a backup and resume; or remove the folder to begin anew with the steps that "
            "were never charged; or submit a new run"
        )
    if found is not None:
        where = f"the checkpoint of step {found.step} in {run.checkpoints}"
        require_own(found, origin_of(run, reservation), where)
        _require_charge(budget, reservation.id, found.ledger_head, found.attempt, where)
    return "; ".join(search.skipped)


def _require_charge(budget: Budget, reservation: str, head: str, attempt: int, where: str) -> None:
    """Refuse a checkpoint whose ledger head is not the charge that paid for its last steps."""
    try:
        paid = Head.parse(head)
    except InvalidRequest:
        raise IntegrityBroken(f"{where} names no row of the ledger that paid for it") from None
    with budget.ledger.reading() as view:
        row = view.row(paid.seq)
    if (
        row is None
        or (row.hash, row.kind, row.reservation) != (paid.hash, Kind.CHARGE, reservation)
        or row.content["attempt"] != attempt
    ):
        raise IntegrityBroken(
            f"{where} was not paid for by reservation {reservation}: the ledger's row {paid.seq}, "
            f"which it names, is no charge of it by attempt {attempt}. {_OWN}"
        )


def require_weights(run: RunDirectory, budget: Budget, reservation: Reservation) -> str | None:
    """Return the sha256 of the run's weights; None for those of an older version, without a mark.

    Raises:
        IntegrityBroken: they are not this run's, or not those that the reservation was settled for.
    """
    path = run.release / WEIGHTS
    try:
        data = path.read_bytes()
        mark, content = tensors_mark(data)
    except (OSError, ValueError) as error:
        raise IntegrityBroken(f"{path} is missing or damaged. {_OWN}") from error
    paid, digest = budget.settled_weights(reservation.id), hashlib.sha256(data).hexdigest()
    if not run.state().sealed and mark is None and paid is None:
        return None
    origin_of(run, reservation).require(mark, content, str(path))
    if paid not in (None, digest):
        raise IntegrityBroken(
            f"{path} has the sha256 {digest}, the ledger says that the charges paid for {paid}. "
            f"{_OWN}"
        )
    return digest


def require_shards(run: RunDirectory, budget: Budget, reservation: Reservation) -> None:
    """Check that the images in a run's release were sampled from the weights that it paid for.

    Raises:
        IntegrityBroken: a shard is another run's or another's weights', or was changed.
    """
    paid = budget.settled_weights(reservation.id)
    if not run.state().sealed and paid is None:
        return
    origin = origin_of(run, reservation)
    for number, entry in enumerate(load_manifest(run.release).shards):
        path = run.release / entry.file
        mark = shard_mark(path)
        origin.require_names(mark, str(path))
        # A name in a file can be copied; what was made is noted where only this run writes.
        if mark.get("weights") != paid or shard_note(run, str(paid), number) != entry:
            raise IntegrityBroken(
                f"{path} is not what run {run.run_id} sampled from the weights {paid}. {_OWN}"
            )


def shard_note(run: RunDirectory, weights: str, number: int) -> ShardEntry | None:
    """Return the entry of a shard that the run made from these weights, None where it has none."""
    note = _notes(run, weights) / f"{number}.json"
    return ShardEntry(**json.loads(note.read_text())) if note.exists() else None


def note_shard(run: RunDirectory, weights: str, number: int, entry: ShardEntry) -> None:
    """Note a shard that was made, in the run's internal folder."""
    _notes(run, weights).mkdir(parents=True, exist_ok=True)
    write_json(_notes(run, weights) / f"{number}.json", asdict(entry))


def kept_shard(run: RunDirectory, weights: str, number: int) -> ShardEntry | None:
    """Return the entry of a shard that an earlier attempt made and that is unchanged."""
    entry = shard_note(run, weights, number)
    if entry is None:
        return None
    path = run.release / entry.file
    return entry if path.is_file() and file_sha256(path) == entry.sha256 else None


def _notes(run: RunDirectory, weights: str) -> Path:
    # Kept by weights: shards of other weights, say from a backup, do not belong to this set.
    return run.internal / "shards" / weights[:16]


def foreign_artefacts(run: RunDirectory, budget: Budget) -> list[str]:
    """Return a sentence for every artefact of a run that is not what its reservation paid for."""
    findings: list[str] = []
    try:
        reservation = require_reservation(run, run.spec(), budget)
    except UmbraError as error:
        return [str(error)]
    made = (
        (run.release / WEIGHTS, require_weights),
        (run.release / "manifest.json", require_shards),
    )
    for path, require in made:
        try:
            if path.exists():
                require(run, budget, reservation)
        except IntegrityBroken as error:
            findings.append(str(error))
    return findings
