"""The budget manager: a named, detached actor through which a whole cluster uses one ledger.

The database's transactions decide: two actors, even on two clusters, cannot grant more than there
is.
"""

from functools import cached_property
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.calls import get_result
from pipeline.runs.ledger_access import LedgerAccess
from privacy.budget import Budget, Receipt, Settlement
from privacy.keystream import os_key
from privacy.ledger import Ledger

_NAME = "umbra-budget"


class BudgetManager:
    """Charges and settles in one ledger for every process of the cluster; see `Budget`."""

    def __init__(self, access: LedgerAccess) -> None:
        self._access = access

    @cached_property
    def _budget(self) -> Budget:
        # Opened by the first call and not by the constructor, whose errors Ray reports as the death
        # of a process; and first without the key, with which a new ledger would be created where
        # another machine has a file of that name.
        Ledger.open(self._access.url).close()
        return Budget(self._access.open())

    def charge(
        self, reservation_id: str, component: str, steps: int, attempt: int, key: str
    ) -> Receipt:
        """See `Budget.charge`."""
        return self._budget.charge(reservation_id, component, steps, attempt, key)

    def settle(self, reservation_id: str, weights_sha256: str | None = None) -> Settlement:
        """See `Budget.settle`."""
        return self._budget.settle(reservation_id, weights_sha256)

    def begin_attempt(self, reservation_id: str, key: str) -> int:
        """See `Budget.begin_attempt`."""
        return self._budget.begin_attempt(reservation_id, key)

    def remaining(self, reservation_id: str, component: str) -> int:
        """Return how many reserved steps of a component were never charged."""
        reserved = self._budget.reservation(reservation_id).component(component).mechanism.steps
        return reserved - self._budget.charged_steps(reservation_id)[component]


def budget_manager(access: LedgerAccess) -> Any:
    """Return the cluster's budget manager, and start it if there is none."""
    access = access.anywhere()
    return (
        ray.remote(BudgetManager)
        .options(
            # A cluster may serve several ledgers and people, and signing keys change.
            name=f"{_NAME}-{access.digest()}",
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            # Ray repeats calls if the manager dies: reading may be repeated, and each call that
            # appends has an idempotency key of its own.
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=_where(access),
        )
        .remote(access)
    )


def _where(access: LedgerAccess) -> NodeAffinitySchedulingStrategy | None:
    """Return where the actor has to be: a ledger in a file is opened on the driver's machine."""
    if not access.is_file:
        return None
    # No other machine that is lost takes the actor along, and if this one is lost, the run has to
    # be resumed anyway.
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def begin_attempt(manager: Any, reservation_id: str) -> int:
    """Begin a new attempt at a reservation and return its number."""
    return int(get_result(manager.begin_attempt.remote(reservation_id, os_key().hex())))


class ActorMeter:
    """A reservation's meter (`Meter`) that charges through the budget manager."""

    def __init__(self, manager: Any, reservation_id: str, attempt: int) -> None:
        self._manager = manager
        self._reservation = reservation_id
        self._attempt = attempt

    def charge(self, component: str, steps: int) -> str:
        """Charge durably and return the ledger's head as `seq:hash`."""
        # A fresh key for each call: if the manager dies after the commit and Ray repeats the call,
        # the charge is made once; a new call is a new charge.
        of = (self._reservation, component, steps, self._attempt, os_key().hex())
        return str(get_result(self._manager.charge.remote(*of)).head)

    def remaining(self, component: str) -> int:
        """Return how many reserved steps were never charged."""
        return int(get_result(self._manager.remaining.remote(self._reservation, component)))
