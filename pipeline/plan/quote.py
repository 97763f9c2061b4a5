"""Quote a plan on its data set's budget before anything is reserved."""

from pipeline.home import Home
from pipeline.plan.plan import Plan
from pipeline.runs.dataset_identity import HOLDOUT, TRAIN
from privacy.budget import Budget, Quote
from privacy.errors import BudgetRefused, NoLedger
from privacy.ledger import Ledger


def budget_quotes(plan: Plan, home: Home) -> dict[str, Quote]:
    """Return the quote of every part of the data set that the plan draws on; changes nothing.

    Empty where the data set has no budget yet, or there is no ledger at all.

    Raises:
        LedgerUnavailable: there is a ledger and it cannot be reached.
        IntegrityBroken: it is damaged.
    """
    asked = {TRAIN: plan.components, HOLDOUT: plan.holdout_components}
    try:
        budget = Budget(Ledger.open(home.ledger_url))
        return {
            part: budget.quote(plan.spec.data.name, components, part)
            for part, components in asked.items()
            if components
        }
    except (NoLedger, BudgetRefused):
        return {}
