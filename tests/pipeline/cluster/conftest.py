"""One embedded Ray cluster for every test that talks to Ray from this process."""

import pytest

SECRET = "pixel 0.7310585"


@pytest.fixture
def secret():
    """A text that stands for private values."""
    return SECRET


@pytest.fixture(scope="session")
def embedded():
    """Be connected to a cluster on the loopback; yields what it has."""
    from pipeline.cluster.connection import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with cluster(None) as there:
            yield there
