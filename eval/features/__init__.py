"""Feature extractors: fixed maps from images to vectors in which sets are compared."""

from collections.abc import Callable
from pathlib import Path

from eval.features.base import FeatureExtractor
from eval.features.convolutional import GaborFeatures
from eval.features.inception import InceptionFeatures


def _inception(channels: int, path: Path | None, device: str) -> FeatureExtractor:
    if path is None:
        raise ValueError(
            "inception: expected the path of a local TorchScript file, found none; "
            "give the path or use the built-in extractor 'gabor'"
        )
    return InceptionFeatures(path, device)


def _gabor(channels: int, path: Path | None, device: str) -> FeatureExtractor:
    return GaborFeatures(channels, device)


EXTRACTORS: dict[str, Callable[[int, Path | None, str], FeatureExtractor]] = {
    "gabor": _gabor,
    "inception": _inception,
}


def extractor(
    name: str, channels: int, path: Path | None = None, device: str = "cpu"
) -> FeatureExtractor:
    """The extractor registered under `name`, ready for images of so many channels.

    Args:
        name: "gabor" (built in) or "inception" (needs `path`).
        channels: channels of the images to come.
        path: local TorchScript file; read by "inception" only.
        device: torch device on which to compute.

    Raises:
        ValueError: no such name, or the extractor cannot be built from these arguments.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"extractor: expected one of {', '.join(EXTRACTORS)}, found {name!r}")
    return EXTRACTORS[name](channels, path, device)
