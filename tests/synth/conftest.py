"""Fixtures for tests of what is written for others to read."""

import pytest


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory):
    """Hugging Face's `datasets`, without a network and with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hugging-face")))
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        yield datasets


@pytest.fixture
def load_dataset(hugging_face, tmp_path_factory):
    """Open a folder as a user does: by its path and nothing else."""

    def load(folder):
        cache = tmp_path_factory.mktemp("cache")
        return hugging_face.load_dataset(str(folder), cache_dir=str(cache))

    return load
