"""One, two and four workers draw, sum and pay the same; a training goes on with fewer.

Every training is real: a group of actors on a cluster of two nodes, gloo between the workers. All
have the same seed, so that whatever depends on their number shows.
"""

import pickle
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline.home import Home
from pipeline.runs.ledger_access import charged_mechanisms
from privacy.accounting import epsilon_bounds
from privacy.audit.ledger import audit_ledger
from privacy.budget import Budget
from privacy.ledger import Kind, Ledger
from synth.checkpoint import newest
from tests.pipeline.cluster import run_of_workers
from tests.pipeline.cluster.run_of_workers import BLOCK, STEPS

pytestmark = pytest.mark.cluster

UNLIKELY = 1e-6


@dataclass(frozen=True)
class Step:
    """What the workers of one step wrote down, in the order of their ranks."""

    parts: list[dict[str, np.ndarray]]

    @property
    def size(self):
        return int(self.parts[0]["size"])

    @property
    def owners(self):
        """Records of the batch as each worker drew them."""
        return [set(part["ids"].tolist()) for part in self.parts]

    @property
    def clean(self):
        """The sum of clipped gradients over all workers."""
        return np.sum([part["local"] for part in self.parts], axis=0)

    @property
    def gradient(self):
        """The noised mean that every worker went on with."""
        first, *others = [part["gradient"] for part in self.parts]
        assert all(np.array_equal(first, other) for other in others)
        return first


@dataclass(frozen=True)
class Trained:
    """One training: the folder of its notes, and the home that it is in."""

    notes: Path
    home: Home

    @cached_property
    def job(self):
        return pickle.loads((self.notes / "job.pickle").read_bytes())

    def steps(self, attempt=1):
        """Steps of an attempt that all of its workers took, by number."""
        by_step = defaultdict(list)
        for path in sorted(self.notes.glob(f"attempt-{attempt}-step-*.npz")):
            part = dict(np.load(path))
            by_step[int(part["step"])].append(part)
        return {n: Step(parts) for n, parts in by_step.items() if len(parts) == parts[0]["size"]}

    def charges(self, ledger):
        rows = ledger.rows(Kind.CHARGE, reservation=self.job.reservation_id)
        return [(row.content["attempt"], row.content["steps"]) for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The trainings by name: "workers-1", "workers-2" and "auto"."""
    folder = tmp_path_factory.mktemp("workers")
    done = subprocess.run(
        [sys.executable, run_of_workers.__file__, str(folder)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    home = Home.locate({"UMBRA_HOME": str(folder / "home")})
    names = ("workers-1", "workers-2", "auto")
    return {name: Trained(folder / name, home) for name in names}


@pytest.fixture
def ledger(trained):
    return Ledger.open(trained["auto"].home.ledger_url)


@pytest.fixture
def alone(trained):
    return trained["workers-1"]


@pytest.fixture(params=[("workers-2", 2), ("auto", 4)], ids=["two", "four"])
def several(request, trained):
    """A training by several workers, and how many they were."""
    name, size = request.param
    return trained[name], size


def test_masks_do_not_depend_on_the_number_of_workers(alone, several):
    together, size = several
    for number, step in together.steps().items():
        assert step.size == size
        owners = step.owners
        (batch,) = alone.steps()[number].owners
        assert set.union(*owners) == batch
        assert sum(map(len, owners)) == len(batch)  # nobody's record is another's
    assert len(together.steps()) >= 3 * BLOCK
    assert len({frozenset(step.owners[0]) for step in alone.steps().values()}) == STEPS


def test_the_sum_of_clipped_gradients_is_the_same(alone, several):
    together, _ = several
    for number, step in together.steps().items():
        expected = alone.steps()[number].clean
        assert np.linalg.norm(step.clean - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["workers-1", "workers-2", "auto"])
def test_there_is_one_noise_whatever_the_number_of_workers(trained, name):
    """Its variance is (sigma C)², by a chi-square test, which refuses what two would add."""
    run = trained[name]
    spec, (part,) = run.job.spec, run.job.components
    sgd, batch = part.mechanism, part.mechanism.sampling_probability * spec.data.records
    noise = np.concatenate(
        [step.gradient * batch - step.clean for step in run.steps().values()]
    ) / (sgd.noise_multiplier * spec.privacy.clip_norm)
    assert _chi_square(noise) > UNLIKELY
    assert _chi_square(noise * np.sqrt(2)) < UNLIKELY
    assert _chi_square(noise * np.sqrt(1.1)) < UNLIKELY
    assert stats.kstest(noise, "norm").pvalue > UNLIKELY


def _chi_square(noise):
    """Two-sided p-value of unit variance."""
    law, total = stats.chi2(noise.size), float(np.sum(noise**2))
    return 2 * min(law.cdf(total), law.sf(total))


def test_epsilon_is_the_same(trained, ledger):
    budget, spent = Budget(ledger), []
    for run in trained.values():
        charged = charged_mechanisms(budget, budget.reservation(run.job.reservation_id))
        spent.append((charged, epsilon_bounds(charged.values(), 1e-4)))
    assert spent[0] == spent[1] == spent[2]
    assert audit_ledger(ledger, []).findings == ()


def test_a_training_that_lost_a_node_goes_on_with_fewer_workers(trained, alone, ledger):
    run = trained["auto"]
    first, second = run.steps(1), run.steps(2)
    assert {step.size for step in first.values()} == {4}
    assert {step.size for step in second.values()} == {2}
    # Steps that were charged and not durable are forfeited: the second attempt takes what is left.
    charges = run.charges(ledger)
    assert sum(steps for _, steps in charges) == STEPS
    by_attempt = {n: sum(steps for attempt, steps in charges if attempt == n) for n in (1, 2)}
    assert by_attempt[1] >= len(first) and by_attempt[2] == len(second)
    last = newest(run.job.checkpoints).checkpoint
    assert (last.attempt, last.step) == (2, min(second) + len(second))
    assert last.step <= STEPS and run.job.weights.exists()
    # Its masks are fresh: another attempt would have drawn others even with the same seed.
    drawn_before = alone.steps()
    assert all(set.union(*step.owners) != drawn_before[n].owners[0] for n, step in second.items())
