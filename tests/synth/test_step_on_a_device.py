"""A step on a device that has shapes and no numbers: whoever waits for one of them fails.

torch's "meta" device takes the way of a GPU through the code, so that this finds, without one, what
would make a GPU wait and tensors that were left on the processor.
"""

from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from privacy import clipping
from privacy.collective import SingleProcess
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.gradients import ENGINES
from privacy.gradients.graph import CapturedEngine
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from synth.preconditioning import EDM, Denoiser, DenoisingLoss
from synth.records import NoisedViews
from synth.unet import UNet, UNetConfig
from tests.builders import records_of, tensors_in

N, K, CLASSES, KEY = 6, 3, 2, bytes(32)


@pytest.fixture(autouse=True)
def _numberless(monkeypatch):
    # Autocast knows no such device.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())


def step(engine, micro_batch, precision="float32"):
    """Draw views, clip, sum, noise and divide; return the gradients."""
    config = UNetConfig(
        size=8, channels=1, base=16, multipliers=(1, 2), blocks=1, attention=(4,), classes=CLASSES
    )
    denoiser = Denoiser(UNet(config), EDM()).to("meta")
    images = np.zeros((N, 8, 8, 1), dtype=np.uint8)
    records = records_of(images, np.zeros(N, dtype=np.int64), "meta")
    gradient = PrivateGradient(
        DPSGD(N, 1.0, 1.0, 1.0),
        PoissonSampler(KEY, 1, 1.0),
        SecureGaussian.seeded(0),
        ENGINES[engine] if isinstance(engine, str) else engine,
        SingleProcess(),
        micro_batch,
    )
    gather = NoisedViews(EDM(), K, 0.1, CLASSES, KEY, 1).for_step(0, records)
    return denoiser, gradient(0, denoiser, DenoisingLoss(EDM(), precision), records.ids, gather)


# The two-pass engine compares its passes, and has to wait for both.
@pytest.mark.parametrize("engine", sorted(ENGINES.keys() - {"two-pass"}))
@pytest.mark.parametrize("micro_batch", [4, N])
def test_nothing_waits_for_a_number(engine, micro_batch):
    denoiser, gradient = step(engine, micro_batch)
    for name, parameter in denoiser.named_parameters():
        assert gradient[name].device.type == "meta"
        assert (gradient[name].shape, gradient[name].dtype) == (parameter.shape, torch.float32)


@pytest.mark.parametrize("engine", ["layerwise", "record"])
def test_who_waits_is_found(engine, monkeypatch):
    shipped = clipping.clip_factors

    def waits(norms, clip_norm):
        assert norms.isfinite().all()
        return shipped(norms, clip_norm)

    monkeypatch.setattr(clipping, "clip_factors", waits)
    with pytest.raises((RuntimeError, NotImplementedError)):
        step(engine, N)


class Captured(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: tensors that come from the processor or go there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = tensors_in((args, kwargs, result))
        if len({x.device for x in tensors}) > 1:
            raise RuntimeError(f"{func} goes between devices")
        return result


def no_tensor(*args, **kwargs):
    """In place of `torch.tensor`, which copies its numbers to the device where no mode sees it."""
    raise RuntimeError("torch.tensor goes between devices")


def captured(work, device):
    def replay():
        with Captured(), mock.patch.object(torch, "tensor", no_tensor):
            work()

    return replay


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_captured_stays_on_its_device(precision):
    step(CapturedEngine(captured), 4, precision)


@pytest.mark.parametrize(
    "leaves",
    [
        lambda loss: loss * torch.ones(1).to("meta").sum(),
        lambda loss: loss * torch.zeros(()),
        lambda loss: loss * torch.tensor(2.0, device="meta"),
    ],
)
def test_what_comes_from_the_processor_is_found(leaves, monkeypatch):
    shipped = DenoisingLoss.__call__
    monkeypatch.setattr(DenoisingLoss, "__call__", lambda *args: leaves(shipped(*args)))
    with pytest.raises(RuntimeError, match="goes between devices"):
        step(CapturedEngine(captured), 4)
