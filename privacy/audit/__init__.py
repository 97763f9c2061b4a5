"""Audits: the ledger is replayed and every ε is computed again by code that admitted nothing."""

from privacy.audit.ledger import audit_ledger
from privacy.audit.results import DatasetAudit, LedgerAudit, ReservationAudit

__all__ = ["DatasetAudit", "LedgerAudit", "ReservationAudit", "audit_ledger"]
