"""Audits: ledgers replayed and every ε computed again, mechanisms and trainings attacked."""

from privacy.audit.ledger import DatasetAudit, LedgerAudit, ReservationAudit, audit_ledger

__all__ = ["DatasetAudit", "LedgerAudit", "ReservationAudit", "audit_ledger"]
