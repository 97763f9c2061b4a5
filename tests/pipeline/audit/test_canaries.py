"""What is planted, what a place left empty is worth, and how canaries are scored and guessed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.run import guess, losses, make_canaries, planted
from privacy.class_sums import noisy_class_sums
from privacy.gradients import ENGINES
from synth.preconditioning import EDM, Denoiser, DenoisingLoss, draw_views
from synth.records import Records
from synth.unet import UNet, UNetConfig


def released(count=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1
    return Records(images, torch.arange(count) % 2)


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
    assert torch.equal(canaries.images, again.images)
    assert torch.equal(canaries.labels, again.labels)
    assert set(canaries.images.unique().tolist()) == {-1.0, 1.0}
    assert len({image.numpy().tobytes() for image in canaries.images}) == 300
    assert canaries.images.mean().abs() < 0.02
    assert set(canaries.labels.tolist()) == set(range(10))


def test_released_images_are_repeated_or_cut_to_fit():
    canaries, images = make_canaries(2, 1, 8, 2), released()
    included = np.array([True, False])
    many = planted(images, canaries, included, 9)
    assert len(many) == 9
    assert torch.equal(many.images[:7], images.images[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(many.labels[:7], images.labels[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(many.images[7], canaries.images[0])
    assert many.images[8].isnan().all()
    few = planted(images, canaries, included, 4)
    assert torch.equal(few.images[:2], images.images[:2])
    only = planted(images, canaries, included, 2)
    assert torch.equal(only.images[0], canaries.images[0])


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_a_canary_that_is_out_is_as_if_it_were_not_there(engine):
    """Zero-out: the same sums, to the last bit of a float64, as without the record."""
    model, canaries = denoiser(), make_canaries(4, 1, 8, 2)
    included = np.array([True, False, False, True])
    records = planted(released(), canaries, included, 7)
    kept = [0, 1, 2, 3, 6]

    def sums(rows):
        sigma, noise = draw_views(
            model.preconditioning, records.images, 2, torch.Generator().manual_seed(1)
        )
        parts = (records.images, records.labels, sigma, noise)
        loss = DenoisingLoss(model.preconditioning)
        return engine.sum_of_clipped(model, loss, tuple(p[rows] for p in parts), 1.0, 7)

    with_places, without = sums(list(range(7))), sums(kept)
    for name, total in with_places.items():
        torch.testing.assert_close(total, without[name], rtol=1e-5, atol=1e-7)
        assert total.isfinite().all()
    assert any(total.abs().max() > 0.01 for total in with_places.values())


def test_the_warm_up_does_not_see_a_canary_that_is_out():
    from privacy.noise import SecureGaussian

    canaries, included = make_canaries(4, 1, 8, 2), np.array([True, False, False, True])
    records = planted(released(), canaries, included, 7)

    def sums(rows):
        return noisy_class_sums(
            records.images[rows],
            records.labels[rows],
            2,
            clip_norm=1.0,
            noise_multiplier=1.0,
            noise=SecureGaussian.seeded(3),
        )

    torch.testing.assert_close(sums(list(range(7))), sums([0, 1, 2, 3, 6]))


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
