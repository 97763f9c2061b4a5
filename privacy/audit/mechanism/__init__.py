"""The audit of the private step: what ships is run on toy data and held against its claim."""

from privacy.audit.mechanism.audit import audit_mechanism
from privacy.audit.mechanism.laws import Check, ComposedBound, MechanismAudit
from privacy.audit.mechanism.runs import StepPath

__all__ = ["Check", "ComposedBound", "MechanismAudit", "StepPath", "audit_mechanism"]
