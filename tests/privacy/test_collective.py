import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from privacy.collective import SingleProcess
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.gradients import ENGINES
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler

# One process of a real gloo group. It imports what the repository ships and nothing of the tests.
WORKER = """
import json, sys
import numpy as np, torch
from privacy.collective import ProcessGroup
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.gradients import ENGINES
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler

rank, size, meeting_point = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.distributed.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=size)
group = ProcessGroup()
own = {"a": torch.full((2, 2), rank + 1.0), "b": torch.tensor([1e-9 + rank], dtype=torch.float64)}
summed = group.sum(own)

x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
torch.manual_seed(2)
model = torch.nn.Linear(3, 1).double()
owned = np.arange(rank, 12, size)
gradient = PrivateGradient(
    DPSGD(12, 0.5, 0.7, 0.3), PoissonSampler(bytes(32), 1, 0.5), SecureGaussian.seeded(5 + rank),
    ENGINES["record"], group, 4,
)
steps = []
for step in range(3):
    out = gradient(
        step, model, lambda m, r: m(r[None]).square().sum(), owned, lambda i: (x[owned[i]],)
    )
    steps.append({name: g.tolist() for name, g in out.items()})
print(json.dumps({
    "rank": group.rank, "size": group.size,
    "a": summed["a"].tolist(), "b": summed["b"].tolist(), "dtype": str(summed["b"].dtype),
    "own": own["a"].tolist(),
    "first": [group.broadcast_from_rank0(value) for value in (2**62 + rank, -rank)],
    "steps": steps,
}))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def gloo(tmp_path_factory):
    """What each of two real processes saw."""
    folder = tmp_path_factory.mktemp("gloo")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), "2", str(folder / "meeting-point")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    answers = []
    for worker in workers:
        out, err = worker.communicate(timeout=110)
        assert worker.returncode == 0, err
        answers.append(json.loads(out.splitlines()[-1]))
    return answers


def test_a_single_process_returns_its_own_tensors():
    tensors = {"a": torch.ones(2)}
    assert (SingleProcess().rank, SingleProcess().size) == (0, 1)
    assert SingleProcess().sum(tensors)["a"] is tensors["a"]
    assert SingleProcess().broadcast_from_rank0(7) == 7


class TestProcessGroup:
    def test_has_rank_and_size(self, gloo):
        assert [(answer["rank"], answer["size"]) for answer in gloo] == [(0, 2), (1, 2)]

    def test_sums_by_name_and_in_float64(self, gloo):
        for answer in gloo:
            assert answer["a"] == [[3.0, 3.0], [3.0, 3.0]]
            assert answer["b"] == [(1e-9 + 0) + (1e-9 + 1)]
            assert answer["dtype"] == "torch.float64"

    def test_does_not_change_the_workers_own_tensors(self, gloo):
        assert [answer["own"] for answer in gloo] == [[[1.0, 1.0]] * 2, [[2.0, 2.0]] * 2]

    def test_broadcasts_whole_numbers_of_rank_0_exactly(self, gloo):
        assert all(answer["first"] == [2**62, 0] for answer in gloo)

    def test_private_gradient_is_that_of_one_worker(self, gloo):
        """Rank 1 holds another noise stream: it must not have been used."""
        x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.manual_seed(2)
        model = torch.nn.Linear(3, 1).double()
        gradient = PrivateGradient(
            DPSGD(12, 0.5, 0.7, 0.3),
            PoissonSampler(bytes(32), 1, 0.5),
            SecureGaussian.seeded(5),
            ENGINES["record"],
            SingleProcess(),
            4,
        )
        for step in range(3):
            out = gradient(
                step,
                model,
                lambda m, r: m(r[None]).square().sum(),
                np.arange(12),
                lambda i: (x[i],),
            )
            for answer in gloo:
                for name, g in out.items():
                    found = torch.tensor(answer["steps"][step][name], dtype=torch.float64)
                    torch.testing.assert_close(found, g, rtol=1e-12, atol=1e-12)
