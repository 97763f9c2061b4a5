"""Runs that have left the house."""

import pytest


@pytest.fixture
def exported(finished, tmp_path):
    house, run = finished
    return house, run, house.export(run, tmp_path / "out")
