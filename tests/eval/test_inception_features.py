"""The local Inception file: how it is called, and that a wrong file is refused at once.

The real weights are 96 MB and not shipped; small scripted networks stand in for their contract.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.features import InceptionFeatures, extractor


class StandIn(nn.Module):
    """Called as the shared file is; answers with each channel's mean of the bytes it was given."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = torch.nn.functional.interpolate(img.float(), size=[299, 299])
        if not return_features:
            return torch.zeros(len(x), 1008)
        return x.mean(dim=[2, 3]).repeat(1, 683)[:, :2048]


class WithoutArgument(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[1, 2, 3])[:, None].expand(-1, 2048)


class WrongWidth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3])


class NoResize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(299)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.float()).flatten(1).repeat(1, 683)[:, :2048]


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == 299, "wrong size"
        return x


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def saved(network: nn.Module, folder: Path) -> Path:
    path = folder / "network.pt"
    torch.jit.script(network).save(str(path))
    return path


def test_features_of_grey_and_colour(tmp_path):
    extract = InceptionFeatures(saved(StandIn(), tmp_path))
    assert (extract.name, extract.metric, extract.dimension) == ("inception", "fid", 2048)
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 256, (70, 1, 1, 3), dtype=np.uint8)
    flat = np.broadcast_to(shades, (70, 20, 20, 3)).copy()
    features = extract(flat)
    assert features.shape == (70, 2048)
    assert features.dtype == np.float64
    np.testing.assert_allclose(features[:, :3], flat[:, 0, 0], rtol=1e-6)
    grey = extract(flat[..., :1])
    assert grey.shape == (70, 2048)
    np.testing.assert_allclose(grey[:, :3], np.repeat(flat[:, 0, 0, :1], 3, axis=1), rtol=1e-6)


def test_a_file_without_the_argument_is_called_plainly(tmp_path):
    extract = extractor("inception", 1, saved(WithoutArgument(), tmp_path))
    assert extract(np.full((2, 8, 8, 1), 7, np.uint8)).tolist() == [[7.0] * 2048] * 2


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (WrongWidth(), r"found output \(2, 3\)"),
        (TwoOutputs(), "found output tuple"),
        (NoResize(), "resizes them to 299x299 itself"),
        (Refuses(), "resizes them to 299x299 itself"),
    ],
)
def test_a_wrong_network_is_refused_at_once(tmp_path, network, message):
    with pytest.raises(ValueError, match=message):
        InceptionFeatures(saved(network, tmp_path))


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"TorchScript file at .*none\.pt, found none"):
        InceptionFeatures(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="found none"):
        InceptionFeatures(tmp_path)
    with pytest.raises(ValueError, match="path of a local TorchScript file"):
        extractor("inception", 1)
    (tmp_path / "junk.pt").write_bytes(b"not a network")
    with pytest.raises(ValueError, match="torch cannot read it"):
        InceptionFeatures(tmp_path / "junk.pt")


def test_only_grey_and_rgb_images_are_accepted(tmp_path):
    extract = InceptionFeatures(saved(StandIn(), tmp_path))
    with pytest.raises(ValueError, match="1 or 3 channels, found 2"):
        extract(np.zeros((1, 8, 8, 2), np.uint8))
    with pytest.raises(TypeError, match="uint8"):
        extract(np.zeros((1, 8, 8, 3)))
