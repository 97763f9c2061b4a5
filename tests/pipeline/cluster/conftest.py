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
    import ray._private.ray_constants

    from pipeline.cluster.connection import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # The environment says so, too, but another test may have imported Ray before it did.
        patch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)
        with cluster(None) as there:
            yield there
