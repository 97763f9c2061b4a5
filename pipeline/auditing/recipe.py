"""A run's recipe, as its reservation states it: what the audits run again."""

from dataclasses import dataclass

from pipeline.building import build_training
from pipeline.home import Home
from pipeline.run_directory import RunDirectory
from pipeline.spec import Spec
from privacy.budget import Budget, Reservation
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.ledger import Ledger
from synth.training import Training


@dataclass(frozen=True)
class TrainingRecipe:
    """How a run was trained.

    Attributes:
        spec: the run's spec.
        reservation: what was admitted for it.
        training: the settings of its training, with the mechanism that is charged.
        delta: δ of its data set's budget.
    """

    spec: Spec
    reservation: Reservation
    training: Training
    delta: float

    @classmethod
    def of(cls, home: Home, run: RunDirectory) -> "TrainingRecipe":
        """Read a run's spec and reservation.

        Raises:
            InvalidRequest: the run never reserved a budget.
            IntegrityBroken: the spec, the state or the ledger is damaged, or the ledger does not
                know the run's reservation.
            LedgerUnavailable: the ledger cannot be read.
        """
        spec, reservation_id = run.spec(), run.state().reservation_id
        if reservation_id is None:
            raise InvalidRequest(f"run {run.run_id} never reserved a budget: it has no recipe")
        budget = Budget(Ledger.open(home.ledger_url, witness=home.witness_path))
        try:
            reservation = budget.reservation(reservation_id)
        except InvalidRequest as error:
            raise IntegrityBroken(
                f"{error} Run {run.run_id} was made under it: its rows were cut off, or this is "
                "not the ledger it was made under."
            ) from error
        delta = budget.odometer(reservation.dataset).delta
        return cls(spec, reservation, build_training(spec, reservation), delta)
