"""What is planted, what a place left empty is worth, and how canaries are scored and guessed."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.run import guess, losses, make_canaries, planted
from privacy.records import LabelledRecords
from synth.preconditioning import EDM, Denoiser
from synth.unet import UNet, UNetConfig


def released(count=3):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return LabelledRecords(images, np.arange(count) % 2)


def denoiser():
    torch.manual_seed(0)
    network = UNet(
        UNetConfig(size=8, channels=1, base=4, multipliers=(1,), blocks=1, attention=(), classes=2)
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # some begin at zero, and hide gradients
    return Denoiser(network, EDM())


def test_canaries_are_the_same_everywhere_and_like_nothing_else():
    canaries = make_canaries(300, 3, 8, 10)
    again = make_canaries(300, 3, 8, 10)
    assert np.array_equal(canaries.values, again.values)
    assert np.array_equal(canaries.labels, again.labels)
    assert set(np.unique(canaries.values)) == {0, 255}
    assert len({image.tobytes() for image in canaries.values}) == 300
    assert abs(canaries.values.mean() / 127.5 - 1) < 0.02
    assert set(canaries.labels.tolist()) == set(range(10))


def test_released_images_are_repeated_or_cut_to_fit():
    canaries, images = make_canaries(2, 1, 8, 2), released()
    included = np.array([True, False])
    many = planted(images, canaries, included, 9)
    assert (len(many.labels), many.total) == (8, 9)
    assert np.array_equal(many.values[:7], images.values[[0, 1, 2, 0, 1, 2, 0]])
    assert np.array_equal(many.labels[:7], images.labels[[0, 1, 2, 0, 1, 2, 0]])
    assert np.array_equal(many.values[7], canaries.values[0])
    few = planted(images, canaries, included, 4)
    assert np.array_equal(few.values[:2], images.values[:2])
    only = planted(images, canaries, included, 2)
    assert np.array_equal(only.values[0], canaries.values[0])


def test_a_canary_that_is_out_is_as_if_it_were_not_there():
    """Zero-out: N, the coins and the views of all others are the same without it."""
    canaries = make_canaries(4, 1, 8, 2)
    every = planted(released(), canaries, np.ones(4, dtype=bool), 7)
    some = planted(released(), canaries, np.array([True, False, False, True]), 7)
    kept = [0, 1, 2, 3, 6]
    assert len(set(every.ids)) == 7
    assert (some.total, some.ids.dtype) == (7, np.uint64)
    for name in ("values", "labels", "ids"):
        assert np.array_equal(getattr(some, name), getattr(every, name)[kept])


def test_losses_use_the_same_draws_at_every_call():
    model, canaries = denoiser(), make_canaries(3, 1, 8, 2)
    first = losses(model, canaries)
    torch.manual_seed(99)
    np.testing.assert_array_equal(losses(model, canaries), first)
    assert len(set(first)) == 3 and np.isfinite(first).all()


def test_a_loss_against_its_definition():
    """For D = 0 the squared error is |x|^2 whatever the noise, 64 for 8x8 pixels of -1 and 1."""

    class Nothing:
        preconditioning = EDM()

        def parameters(self):
            return iter(())

        def __call__(self, x, sigma, label):
            seen.append(sigma)
            assert (label == canaries.labels[len(seen) - 1]).all()
            return torch.zeros_like(x)

    seen, told = [], []
    canaries = make_canaries(3, 1, 8, 2)
    found = losses(Nothing(), canaries, lambda: told.append(1))
    expected = [float(EDM().weight(sigma).mean()) * 64 for sigma in seen]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(told) == 3
    assert len(torch.cat(seen).unique()) == 3 * 64


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.data())
def test_the_surest_are_guessed(scores, data):
    r = data.draw(st.integers(1, len(scores)))
    guesses = guess(np.array(scores), r)
    assert (np.abs(guesses).sum(), (guesses == -1).sum()) == (r, r // 2)
    high, low = np.array(scores)[guesses == 1], np.array(scores)[guesses == -1]
    rest = np.array(scores)[guesses == 0]
    for one, other in ((high, rest), (rest, low), (high, low)):
        if len(one) and len(other):
            assert one.min() >= other.max()
