"""What a stage is given, without Ray and MLflow."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pipeline.progress import SilentProgress


class Tracked:
    """Keeps the numbers that would go to MLflow."""

    def __init__(self):
        self.values = {}

    def metrics(self, release, step=0):
        self.values |= release.values

    def log_sampling_model(self, weights, spec):
        """Keep no model."""


class Counted(SilentProgress):
    """Keeps how far stages came."""

    def __init__(self):
        self.done = {}

    @contextmanager
    def stage(self, name, total=None):
        self.done[name] = 0

        def advance(n=1):
            self.done[name] += n

        def reach(done):
            self.done[name] = max(self.done[name], done)

        yield SimpleNamespace(advance=advance, reach=reach)


@pytest.fixture
def tracked():
    return Tracked()


@pytest.fixture
def context(house):
    """Make the context of a run."""

    def make(run):
        return SimpleNamespace(
            run=run,
            spec=run.spec(),
            home=house.home,
            budget=house.budget,
            reservation=house.budget.reservation(run.state().reservation_id),
            progress=Counted(),
        )

    return make
