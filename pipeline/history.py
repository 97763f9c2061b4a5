"""What a row of the ledger says, in a line for a person."""

from collections.abc import Callable, Mapping
from typing import Any

from privacy.ledger import Kind, Row

_Body = Mapping[str, Any]


def told(row: Row) -> str:
    """Return what happened by this row; a kind that is not known is named as it is."""
    tell = _TELLERS.get(row.kind)
    return row.kind if tell is None else tell(row.content)


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


_TELLERS: dict[str, Callable[[_Body], str]] = {
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
