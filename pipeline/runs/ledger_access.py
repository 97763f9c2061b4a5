"""A home's ledger: access, signing, heads that runs recorded, and what its rows say of a run."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.home import Home
from pipeline.runs.directory import RunDirectory
from privacy.accounting import epsilon_bounds
from privacy.accounting.guarantee import Guarantee, group, replace_one
from privacy.accounting.tradeoff import trade_offs
from privacy.budget import Budget, Reservation
from privacy.durable import append_line
from privacy.errors import IntegrityBroken, InvalidRequest, NoLedger, UmbraError
from privacy.keys import load_or_create_key
from privacy.ledger import Head, Ledger, records
from privacy.mechanisms import Mechanism

_HEADS = "ledger-heads"
_SEAL = "checkpoint.json"  # written last


@dataclass(frozen=True)
class LedgerAccess:
    """The ledger's place, the secrets it needs, and who acts; its repr shows no secret."""

    url: str = field(repr=False)  # may hold a password
    # The home's key, by which data sets are recognised.
    key: bytes = field(repr=False)
    author: str  # recorded with every row
    # Ed25519 seed, where this home signs its rows.
    signing_key: bytes | None = field(default=None, repr=False)
    # File with the newest head that this home has seen; None for a process that cannot see it.
    witness: Path | None = None

    @classmethod
    def of(cls, home: Home) -> "LedgerAccess":
        """Gather the access of `home`, drawing its key where there is no ledger yet.

        Raises InvalidRequest where the key is missing and a ledger was made with it, and
        LedgerUnavailable where a key cannot be read, or neither a missing one nor the ledger.
        """
        if not home.key_path.exists():
            _refuse_lost_key(home)
        signs = home.signing_key_path.exists()
        return cls(
            url=home.ledger_url,
            key=load_or_create_key(home.key_path),
            author=home.author,
            signing_key=load_or_create_key(home.signing_key_path) if signs else None,
            witness=home.witness_path,
        )

    @property
    def is_file(self) -> bool:
        """Whether the ledger is a file of this machine and not a server."""
        return self.url.startswith("sqlite:")

    def anywhere(self) -> "LedgerAccess":
        """Return the access for a process that may run on another machine of a cluster."""
        # The witness is a file of this machine; where the ledger is one, too, so is the process.
        return self if self.is_file else replace(self, witness=None)

    def digest(self) -> str:
        """Return a public name for exactly this access: 12 hex digits."""
        parts = [self.url.encode(), self.author.encode(), self.key, self.signing_key or b""]
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hashlib.blake2b(message, digest_size=6, key=self.key).hexdigest()

    def open(self) -> Ledger:
        """Open the ledger for appending, creating it where there is none; see `Ledger.open`."""
        given = {name: getattr(self, name) for name in ("signing_key", "author", "witness")}
        return Ledger.open(self.url, self.key, **given)


def open_budget(home: Home) -> Budget:
    """Return the budgets of the home's ledger, creating key and ledger where there are none."""
    return Budget(LedgerAccess.of(home).open())


def read_budget(home: Home) -> Budget:
    """Return the budgets of a ledger that is there, for reading; it needs no key.

    Raises IntegrityBroken where it is missing, emptied or replaced, as its witness says, or where
    its rows fail the audit's rules: what they say would be no figures.
    """
    from privacy.audit.replay import Replay

    ledger = Ledger.open(home.ledger_url, witness=home.witness_path)
    replayed = Replay()
    findings = ledger.verify()
    if not findings:
        for row in ledger.rows():
            replayed.feed(row)
    for finding in (*findings, *replayed.findings):
        raise IntegrityBroken(
            f"The ledger at {ledger.where} is broken ({finding}), so that no figure of it holds. "
            "Run `umbra audit` for all findings and restore a sound copy."
        )
    return Budget(ledger)


def _refuse_lost_key(home: Home) -> None:
    # A new key for an old ledger would only block the right one.
    with suppress(NoLedger):
        ledger = Ledger.open(home.ledger_url, witness=home.witness_path)
        raise InvalidRequest(
            f"{home.key_path} is missing, and the ledger at {ledger.where} was made with it (key "
            f"id {ledger.key_id}). Put it back from a backup: without it the data sets in the "
            "ledger cannot be recognised."
        )


def start_signing(home: Home) -> tuple[str, Path]:
    """Sign every later row by a new Ed25519 key; return its public half in hex and its file."""
    # Opened for reading first: a misspelt home must not get a ledger of its own.
    read_budget(home).ledger.close()
    ledger = LedgerAccess.of(home).open()
    # The secret is on disk under another name before the ledger requires it, and takes its place
    # after: a command that is repeated after a crash in between continues with it.
    fresh = home.signing_key_path.with_suffix(".next")
    public_key = ledger.start_signing(load_or_create_key(fresh))
    fresh.replace(home.signing_key_path)
    return public_key, home.signing_key_path


def record_head(run: RunDirectory, head: Head) -> None:
    """Append a head durably to the run's folder; raise UmbraError where it cannot be written."""
    path = run.internal / _HEADS
    try:
        append_line(path, str(head))
    except OSError as error:
        raise UmbraError(f"cannot write {path}: {error.strerror}") from error


def recorded_heads(run: RunDirectory) -> list[Head]:
    """Return every head that the run recorded, its newest checkpoint's included.

    Raises IntegrityBroken where the record is damaged.
    """
    from synth.checkpoint import newest  # loads torch

    path = run.internal / _HEADS
    try:
        lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
        heads = [Head.parse(line) for line in lines]
    except (OSError, UnicodeDecodeError, InvalidRequest) as error:
        raise IntegrityBroken(
            f"{path} is damaged: lines SEQ:HASH were expected, as the ledger's heads are written"
        ) from error
    found = newest(run.checkpoints).checkpoint
    return [*heads, Head.parse(found.ledger_head)] if found and found.ledger_head else heads


def verify_ledger_ancestry(run: RunDirectory, ledger: Ledger) -> None:
    """Raise IntegrityBroken where the ledger no longer holds a row that this run has seen."""
    # An older copy in the ledger's place lacks the charges since, so their budget would be spent
    # a second time.
    with ledger.reading() as view:
        for head in recorded_heads(run):
            row = view.row(head.seq)
            if row is None or row.hash != head.hash:
                raise IntegrityBroken(
                    f"the ledger at {ledger.where} no longer holds row {head.seq} as run "
                    f"{run.run_id} saw it: it was rolled back or replaced. Put the newest copy "
                    "back, then run `umbra audit`."
                )


def charged_mechanisms(budget: Budget, reservation: Reservation) -> dict[str, Mechanism]:
    """Return the mechanisms of a reservation with the steps that were charged, by component."""
    charged = budget.charged_steps(reservation.id)
    return {
        part.name: part.mechanism.with_steps(charged[part.name])
        for part in reservation.plan
        if charged[part.name]
    }


def privacy_statement(budget: Budget, reservation_id: str) -> dict[str, Any]:
    """Return `privacy.json` for everything made under a reservation, computed from raw rows."""
    reservation = budget.reservation(reservation_id)
    delta = budget.odometer(reservation.dataset).delta
    mechanisms = charged_mechanisms(budget, reservation)
    bounds = epsilon_bounds(mechanisms.values(), delta).stated() if mechanisms else {}
    k, unit = reservation.records_per_unit, f"one {reservation.unit}"
    further = [] if reservation.void else guarantees(mechanisms.values(), delta, k)
    attack = () if reservation.void else trade_offs([mechanisms.values()], delta, k)
    return {
        "run": reservation.run_id,
        "dataset": reservation.dataset,
        "records": reservation.records,
        # An owner of several records has a guarantee of their own below.
        "unit": unit if k == 1 else f"one record ({unit} has up to {k})",
        "records_per_unit": k,
        "neighbouring_relation": records.RELATION,
        "delta": delta,
        "epsilon": bounds,
        "guarantees": [asdict(each) for each in further],
        "attack": [curve.to_record(reservation.unit) for curve in attack],
        "mechanisms": [
            {"component": name, **mechanism.to_record()} for name, mechanism in mechanisms.items()
        ],
        "ledger_id": budget.ledger.ledger_id,
        "head_hash": str(budget.ledger.head()),
        "reservation": reservation.id,
        "spec": reservation.spec,
        "weights": budget.settled_weights(reservation.id),
        "void": reservation.void,
    }


@dataclass(frozen=True)
class TrainingSteps:
    """How far a run's private training has come."""

    planned: int
    charged: int  # by all attempts together
    # That the weights have taken, or those of the newest checkpoint; None where nothing tells.
    trained: int | None

    @property
    def reachable(self) -> int:
        """How many steps will have been trained once all that is left is charged and drawn."""
        return min(self.planned, (self.trained or 0) + self.planned - self.charged)

    def __str__(self) -> str:
        trained = "an unknown number" if self.trained is None else self.trained
        return f"{trained} trained, {self.charged} charged, {self.planned} planned"


def training_steps(run: RunDirectory, budget: Budget) -> TrainingSteps | None:
    """Return how far a run's training has come; None where it never reserved.

    It counts the component of the most steps. Others, like a warm-up's query, are drawn at once.
    """
    state = run.state()
    if state.reservation_id is None:
        return None
    planned, charged = step_counts(budget, state.reservation_id)
    trained = state.trained_steps
    if trained is None:
        trained = last_checkpoint(run)
    if trained is None and not state.is_done("train"):
        trained = 0
    return TrainingSteps(planned, charged, trained)


def step_counts(budget: Budget, reservation_id: str) -> tuple[int, int]:
    """Return how many steps of a reservation's longest component are planned, and are charged."""
    plan = budget.reservation(reservation_id).plan
    longest = max(plan, key=lambda part: part.mechanism.steps)
    return longest.mechanism.steps, budget.charged_steps(reservation_id)[longest.name]


def last_checkpoint(run: RunDirectory) -> int | None:
    """Return the steps of the newest checkpoint by its name, unread; None where there is none."""
    complete = (path for path in run.checkpoints.glob("step-*") if (path / _SEAL).exists())
    return max((int(path.name.removeprefix("step-")) for path in complete), default=None)


def guarantees(
    mechanisms: Iterable[Mechanism], delta: float, records_per_unit: int
) -> list[Guarantee]:
    """Return the guarantees for replacing a record and, where a unit has several, adding them."""
    charged = list(mechanisms)
    if not charged:
        return []
    several = [group(charged, delta, records_per_unit)] if records_per_unit > 1 else []
    return [replace_one(charged, delta), *several]
