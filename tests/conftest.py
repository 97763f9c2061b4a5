"""Fixtures that tests of more than one package use."""

import pytest
from hypothesis import settings

# No test asserts a time: hypothesis would fail an example for taking 200 ms on a busy machine.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def run_workers():
    """Call `work(collective)` on `size` workers that are joined; return what each gave, by rank."""
    from privacy.audit.mechanism.workers import run_workers

    return run_workers
