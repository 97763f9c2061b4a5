"""The three networks are the paper's at 28x28 and take any other size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eval.settings import CLASSIFIER_NAMES
from eval.utility import CLASSIFIERS, architecture


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_registry_holds_the_papers_three():
    assert tuple(CLASSIFIERS) == CLASSIFIER_NAMES == ("logreg", "mlp", "cnn")
    with pytest.raises(ValueError, match="logreg, mlp, cnn"):
        architecture("resnet")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("logreg", 784 * 10 + 10),
        ("mlp", 784 * 100 + 100 + 100 * 10 + 10),
        ("cnn", 320 + 18_496 + 73_856 + (1152 * 128 + 128) + (128 * 10 + 10)),
    ],
)
def test_parameter_counts_on_mnist(name, count):
    assert parameters(architecture(name)(28, 28, 1, 10)) == count


def test_layers_of_the_small_two():
    kinds = [[type(layer) for layer in architecture(n)(28, 28, 1, 10)] for n in ("logreg", "mlp")]
    assert kinds == [[nn.Flatten, nn.Linear], [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]]


def test_cnn_is_the_printed_one_at_28():
    network = architecture("cnn")(28, 28, 1, 10)
    conv, tail = [nn.MaxPool2d, nn.ReLU, nn.Dropout], [nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in network] == [
        nn.Conv2d, *conv, nn.Conv2d, *conv, nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear, *tail
    ]  # fmt: skip
    assert all(layer.padding == (0, 0) for layer in network if isinstance(layer, nn.Conv2d))
    assert all(layer.p == 0.5 for layer in network if isinstance(layer, nn.Dropout))
    sides, x = [], torch.zeros(2, 1, 28, 28)
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            sides.append(x.shape[-1])
        if isinstance(layer, nn.Flatten):
            assert x.shape == (2, 1152)
    assert sides == [26, 13, 11, 5, 3]
    assert x.shape == (2, 10)


def test_cnn_pads_small_images_only():
    def padding(side: int) -> tuple[int, int]:
        return architecture("cnn")(side, 28, 1, 10)[0].padding

    assert padding(17) == (1, 1)
    assert padding(18) == (0, 0)
    assert architecture("cnn")(8, 8, 1, 10)[11].in_features == 512


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(list(CLASSIFIERS)),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    channels=st.integers(1, 4),
    classes=st.integers(2, 12),
)
def test_every_shape_gives_logits(name, height, width, channels, classes):
    network = architecture(name)(height, width, channels, classes)
    assert network(torch.zeros(2, channels, height, width)).shape == (2, classes)


def test_cnn_refuses_what_two_pools_cannot_take():
    with pytest.raises(ValueError, match="at least 4x4"):
        architecture("cnn")(3, 8, 1, 10)
