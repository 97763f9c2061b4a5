"""`umbra audit`: the ledger, the mechanism that is shipped, a run's training, and its release."""

from pipeline.audit.ledger import Audit, audit, audit_run

__all__ = ["Audit", "audit", "audit_run"]
