"""Neither the number of workers nor the order in which each loads changes a step of training.

A float64 network and views in float64, so that nothing but rounding of 1e-16 is left.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.gradients import ENGINES
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from privacy.records import LabelledRecords, OwnedRecords, own
from synth.preconditioning import EDM, Denoiser, DenoisingLoss
from synth.records import NoisedViews, Records

KEY = bytes(range(32))
N, K, C, CLASSES = 24, 3, 0.5, 2
ORDERS = ("as read", "reversed", "shuffled")
SHUFFLED = np.random.default_rng(3).permutation(N)


class Network(nn.Module):
    """F(x; c_noise, y) of two convolutions over three channels, told the label, in float64."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3, padding=1)
        self.labels = nn.Embedding(CLASSES + 1, 4)
        self.outer = nn.Conv2d(4, 3, 3, padding=1)
        self.double()
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=generator)

    def forward(self, x, c_noise, label):
        return self.outer(torch.tanh(self.inner(x) + self.labels(label)[:, :, None, None]))


def whole():
    """Return records of which the last is a double of the first."""
    values = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(N) % CLASSES
    values[-1], labels[-1] = values[0], labels[0]
    return LabelledRecords(values, labels)


def loaded(order, size):
    """Return the records in parts of `size`."""
    rows = {"as read": np.arange(N), "reversed": np.arange(N)[::-1], "shuffled": SHUFFLED}[order]
    parts = [rows[start : start + size] for start in range(0, N, size)]
    return [LabelledRecords(whole().values[part], whole().labels[part]) for part in parts]


def owned_by_place(batches, key, rank, size, expected):
    """Plant: every size-th record of those loaded, known by its place, as once it was."""
    every = LabelledRecords.concatenate(batches)
    places = np.arange(rank, expected, size)
    values, labels = every.values[places], every.labels[places]
    return OwnedRecords(values, labels, places.astype(np.uint64), expected)


def step(run_workers, orders, q=0.5, zeroed=None, engine="layerwise", owner=own, number=3):
    """Take a step on as many workers as there are orders, with hardly any noise.

    `zeroed` is a record whose gradient is not finite, which adds zero. Returns the sum, and what
    each record of a batch was given: by content, label and place among its doubles.
    """
    drawn = []

    def work(workers):
        batches = loaded(orders[workers.rank], size=5 + workers.rank)
        part = owner(batches, KEY, workers.rank, workers.size, N)
        records, denoiser = Records.of(part, torch.device("cpu")), Denoiser(Network(), EDM())
        views = NoisedViews(EDM(), K, 0.2, CLASSES, KEY, 1).for_step(number, records)

        def gather(positions):
            images, labels, sigma, noise = views(positions)
            for position, *given in zip(positions, images, labels, sigma, noise, strict=True):
                content = part.values[position].tobytes(), int(part.labels[position])
                drawn.append((*content, *(bytes(one.numpy().tobytes()) for one in given[1:])))
                if zeroed is not None and content == zeroed:
                    given[0].fill_(math.nan)
            return images.double(), labels, sigma.double(), noise.double()

        gradient = PrivateGradient(
            DPSGD(N, q, 1e-9, C),
            PoissonSampler(KEY, 1, q),
            SecureGaussian.seeded(0),
            ENGINES[engine],
            workers,
            4,
        )
        found = gradient(number, denoiser, DenoisingLoss(EDM()), records.ids, gather)
        return torch.cat([part.flatten() for part in found.values()]) * (q * N)

    total, *others = run_workers(len(orders), work)
    assert all(torch.equal(total, other) for other in others)
    return total, sorted(drawn)


@pytest.fixture(scope="module")
def alone():
    from privacy.audit.mechanism.runs import run_workers

    return {engine: step(run_workers, ["as read"], engine=engine) for engine in ENGINES}


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize(
    "orders",
    [*product(ORDERS, repeat=1), *product(ORDERS, repeat=2), [*ORDERS, "reversed"]],
    ids=", ".join,
)
def test_masks_and_views_are_the_same_and_sums_but_for_rounding(orders, engine, alone, run_workers):
    expected, batch = alone[engine]
    found, drawn = step(run_workers, orders, engine=engine)
    assert drawn == batch and N / 5 < len(batch) < N
    assert float((found - expected).norm() / expected.norm()) <= 1e-12


@pytest.mark.parametrize("order", ORDERS)
def test_one_worker_takes_the_same_step_to_the_last_bit(order, alone, run_workers):
    assert torch.equal(step(run_workers, [order])[0], alone["layerwise"][0])


def moved(run_workers, orders, owner):
    """Return how far each record moves the sum when it is zeroed out, in units of C; all are in."""
    total, drawn = step(run_workers, orders, q=1.0, owner=owner)
    contents = sorted({given[:2] for given in drawn})
    without = [
        step(run_workers, orders, q=1.0, owner=owner, zeroed=zeroed)[0] for zeroed in contents
    ]
    return {
        content: float((total - left).norm()) / C
        for content, left in zip(contents, without, strict=True)
    }


def check_a_record_moves_the_sum_by_its_clipped_gradient(run_workers):
    """Two workers load in two orders; a double, zeroed with its like, is two records."""
    double = whole().values[0].tobytes(), int(whole().labels[0])
    for orders in (["as read", "reversed"], ["shuffled", "as read"]):
        for content, distance in moved(run_workers, orders, OWNER).items():
            most = 2 if content == double else 1
            assert 0.01 < distance <= most * (1 + 1e-9)


OWNER = own


def test_a_record_moves_the_sum_by_its_clipped_gradient(run_workers):
    check_a_record_moves_the_sum_by_its_clipped_gradient(run_workers)


def test_owners_by_place_are_caught(monkeypatch, run_workers):
    """One record has two owners, and another none."""
    monkeypatch.setattr(f"{__name__}.OWNER", owned_by_place)
    with pytest.raises(AssertionError):
        check_a_record_moves_the_sum_by_its_clipped_gradient(run_workers)
    found = moved(run_workers, ["as read", "shuffled"], owned_by_place)
    assert max(found.values()) > 1.5
    assert len(found) < N - 1
