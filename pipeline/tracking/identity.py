"""Who a run is, in tags that a reader of MLflow can check against the ledger."""

from dataclasses import dataclass

RUN_TAG = "umbra.run_id"
SPEC_TAG = "umbra.spec_sha256"
LEDGER_TAG = "umbra.ledger_id"
HEAD_TAG = "umbra.ledger_head"
VOID_TAG = "umbra.void"
ENGINE_TAG = "umbra.gradient_engine"


@dataclass(frozen=True)
class RunIdentity:
    """What ties an MLflow run to the proof of it.

    Attributes:
        run_id: the Umbra run.
        spec_sha256: digest of the spec as submitted.
        ledger_id: which ledger was charged.
        ledger_head: hash of the ledger's newest row.
        void: a seed was given, so nothing is promised.
        gradient_engine: how clipped gradients are computed; it has no influence on them.
    """

    run_id: str
    spec_sha256: str
    ledger_id: str
    ledger_head: str
    void: bool
    gradient_engine: str

    def tags(self) -> dict[str, str]:
        """The identity as MLflow tags."""
        return {
            RUN_TAG: self.run_id,
            SPEC_TAG: self.spec_sha256,
            LEDGER_TAG: self.ledger_id,
            HEAD_TAG: self.ledger_head,
            VOID_TAG: str(self.void).lower(),
            ENGINE_TAG: self.gradient_engine,
        }
