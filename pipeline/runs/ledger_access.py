"""A home's ledger: access and signing, heads that runs recorded outside it, rows in words."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.home import Home
from pipeline.runs.directory import RunDirectory
from privacy.budget import Budget
from privacy.durable import append_line
from privacy.errors import IntegrityBroken, InvalidRequest, NoLedger, UmbraError
from privacy.keys import load_or_create_key
from privacy.ledger import Head, Kind, Ledger, Row

_HEADS = "ledger-heads"


@dataclass(frozen=True)
class LedgerAccess:
    """The ledger's place, the secrets it needs, and who acts; its repr shows no secret.

    Attributes:
        url: of the ledger; may hold a password.
        key: the home's key, by which data sets are recognised.
        author: recorded with every row.
        signing_key: Ed25519 seed, where this home signs its rows.
        witness: file outside the database with the newest head that this home has seen; None for a
            process that does not see the home.
    """

    url: str = field(repr=False)
    key: bytes = field(repr=False)
    author: str
    signing_key: bytes | None = field(default=None, repr=False)
    witness: Path | None = None

    @classmethod
    def of(cls, home: Home) -> "LedgerAccess":
        """Gather the access of `home`, drawing its key where there is no ledger yet.

        Raises:
            InvalidRequest: the key is missing and a ledger was made with it.
            LedgerUnavailable: a key file cannot be read, or is missing and the ledger cannot be.
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
        return Ledger.open(
            self.url,
            self.key,
            signing_key=self.signing_key,
            author=self.author,
            witness=self.witness,
        )


def open_budget(home: Home) -> Budget:
    """Return the budgets of the home's ledger, creating key and ledger where there are none.

    Raises as `LedgerAccess.of` and `Ledger.open`.
    """
    return Budget(LedgerAccess.of(home).open())


def _refuse_lost_key(home: Home) -> None:
    # A new key for an old ledger would only block the right one.
    with suppress(NoLedger):
        ledger = Ledger.open(home.ledger_url)
        raise InvalidRequest(
            f"{home.key_path} is missing, and the ledger at {ledger.where} was made with it (key "
            f"id {ledger.key_id}). Put it back from a backup: without it the data sets in the "
            "ledger cannot be recognised."
        )


def start_signing(home: Home) -> tuple[str, Path]:
    """Sign every later row by a new Ed25519 key; return the public key in hex and the key's file.

    Raises as `Ledger.start_signing`, and NoLedger where there is none yet.
    """
    Ledger.open(home.ledger_url).close()  # a misspelt home must not get a ledger of its own
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

    Raises:
        IntegrityBroken: the record of the heads is damaged.
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
    """Refuse to continue where the ledger no longer holds a row that this run has seen.

    Raises:
        IntegrityBroken: a row is gone or was replaced, or the record is damaged.
        LedgerUnavailable: the ledger cannot be reached.
    """
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


_Body = Mapping[str, Any]


def describe_row(row: Row) -> str:
    """Describe a row in one line for a person; an unknown kind is named as it is."""
    describe = _DESCRIPTIONS.get(row.kind)
    return row.kind if describe is None else describe(row.content)


def _plan(body: _Body) -> str:
    parts = (f"{p['name']} × {p['mechanism']['steps']}" for p in body["plan"])
    void = ", VOID (seeded)" if body["void"] else ""
    return f"reserved for run {body['run']}: {', '.join(parts)}{void}"


def _charge(body: _Body) -> str:
    steps = f"{body['steps']} step{'s' if body['steps'] != 1 else ''}"
    return f"charged {steps} of {body['component']}, attempt {body['attempt']}"


def _settle(body: _Body) -> str:
    charged = ", ".join(f"{name} × {steps}" for name, steps in body["charged"].items())
    return f"settled: {charged} charged, the rest given back"


_DESCRIPTIONS: dict[str, Callable[[_Body], str]] = {
    Kind.DECLARE: lambda body: f"declared ε = {body['epsilon']:g} at δ = {body['delta']:g}",
    Kind.BIND: lambda body: f"bound to content of {body['records']} records",
    Kind.PARTITION: lambda body: f"{body['partition']}: bound to {body['records']} records",
    Kind.OVERLAP: lambda body: f"accepted that it shares records with {body['other']}",
    Kind.RESERVE: _plan,
    Kind.ATTEMPT: lambda body: f"attempt {body['attempt']} began",
    Kind.CHARGE: _charge,
    Kind.SETTLE: _settle,
    Kind.EXPORT: lambda body: f"exported from run {body['run']}: {body['description']}",
    Kind.CLOSE: lambda body: "closed: nothing more is admitted",
}
