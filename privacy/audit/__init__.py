"""Audits: ledgers replayed and every ε computed again, mechanisms and trainings attacked."""

from privacy.audit.ledger import audit_ledger
from privacy.audit.results import DatasetAudit, LedgerAudit, ReservationAudit

__all__ = ["DatasetAudit", "LedgerAudit", "ReservationAudit", "audit_ledger"]
