"""The append-only, hash-chained ledger of everything that was declared, reserved and charged."""

from privacy.ledger.chain import Finding
from privacy.ledger.rows import SCHEMA_VERSION, Head, Kind, Row
from privacy.ledger.store import Ledger
from privacy.ledger.view import Transaction, View

__all__ = ["SCHEMA_VERSION", "Finding", "Head", "Kind", "Ledger", "Row", "Transaction", "View"]
