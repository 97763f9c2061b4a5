"""Trainings by 1, 2 and 4 workers and by a number that changes, on several nodes of one machine.

As a program it leaves what every worker did in every step in the folder that it is given: a test's
own process may be connected to another cluster already.
"""

import os
import pickle
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# As an embedded cluster does; read when Ray is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

from pipeline.cluster.connection import cluster
from pipeline.home import Home
from pipeline.plan import plan
from pipeline.runs.dataset_identity import TRAIN, DatasetIdentity
from pipeline.runs.directory import RunDirectory
from pipeline.runs.ingest import ingest
from pipeline.runs.ledger_access import LedgerAccess
from pipeline.runs.origin import origin_of
from pipeline.spec import parse_spec
from privacy.budget import Budget
from privacy.ledger.records import Facts

STEPS, BLOCK = 24, 2
AUTO_STEP_SECONDS = 0.25  # so that there is time to take a node away
NODES, CPUS = 2, 2  # of the cluster, and of each node
SPEC = """\
name: counted
data:
  name: digits
  source: {{kind: digits, split: train}}
  records: 1438
  size: 8
  channels: 1
  classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
  public: true
privacy: {{epsilon: 5, delta: 1e-4, seed: 7}}
model: {{base: 4, multipliers: [1], attention: [], blocks: 1}}
train: {{batch: 48, steps: 24, views: 2, charge_block: 2, checkpoint_every: 2}}
synthesize: {{images: 10}}
resources: {{workers: {workers}}}
"""


def main(folder: Path) -> None:
    """Train every run and note what it left."""
    home = Home.locate({"UMBRA_HOME": str(folder / "home")})
    home.ensure()
    Budget(LedgerAccess.of(home).open()).declare("digits", 100, 1e-4, Facts(public=True))
    with _nodes() as (address, last), cluster(address):
        for count in (1, 2):
            _train(home, count, folder / f"workers-{count}")
        _train(home, "auto", folder / "auto", AUTO_STEP_SECONDS, last)


@contextmanager
def _nodes():
    """Be a cluster of several nodes on the loopback; yields its address and what takes one away."""
    from ray.cluster_utils import Cluster

    # Where a cluster's address is noted, though its own folder is elsewhere.
    Path("/tmp/ray").mkdir(exist_ok=True)
    nodes = Cluster()
    with tempfile.TemporaryDirectory(prefix="umbra-nodes-") as folder:
        try:
            for _ in range(NODES):
                last = nodes.add_node(num_cpus=CPUS, temp_dir=folder)
            yield nodes.address, lambda: nodes.remove_node(last)
        finally:
            nodes.shutdown()


def _train(home, workers, notes, step_seconds=0.0, take_node=None):
    import pipeline.cluster.training as subject
    from pipeline.cluster.budget_actor import budget_manager

    notes.mkdir()
    spec = parse_spec(SPEC.format(workers=workers), folder=notes)
    access, run = LedgerAccess.of(home), home.new_run(spec)
    budget = Budget(access.open())
    ingest(run, spec, plan(spec, trial=False), access.key, budget)
    job = _job(run, budget)
    worker = subject.TrainingWorker
    subject.TrainingWorker = watched(notes, step_seconds)
    if take_node is not None:
        threading.Thread(target=_take, args=(take_node, job.checkpoints), daemon=True).start()
    try:
        subject.training_group(job, budget_manager(access)).run(lambda done: None)
    finally:
        subject.TrainingWorker = worker
    (notes / "job.pickle").write_bytes(pickle.dumps(job))


def _job(run: RunDirectory, budget: Budget):
    from pipeline.cluster.training import TrainingJob

    spec, reserved = run.spec(), run.state().reservation_id
    return TrainingJob(
        spec=spec,
        components=budget.reservation(reserved).plan,
        reservation_id=reserved,
        content=DatasetIdentity.of(run, spec.data.name, TRAIN),
        checkpoints=run.internal / "checkpoints",
        traces=run.internal / "traces",
        weights=run.release / "model" / "weights.safetensors",
        origin=origin_of(run, budget.reservation(reserved)),
    )


def _take(take_node, checkpoints):
    """Take the node away once some steps are durable."""
    while not (checkpoints / "step-000006").exists():
        time.sleep(0.01)
    take_node()


def watched(notes, step_seconds):
    """Return a training worker that writes down what it drew, summed and got in every step."""
    from pipeline.cluster.training import TrainingWorker

    class WatchedWorker(TrainingWorker):
        def work(self, *arguments):
            import os
            import time

            from privacy import dp_sgd
            from privacy.dp_sgd import PrivateGradient
            from privacy.poisson import PoissonSampler

            mask = PoissonSampler.mask
            zeros, call = dp_sgd.zero_sums, PrivateGradient.__call__
            note, local = {}, {}

            def watched_mask(self, step, ids):
                chosen = mask(self, step, ids)
                note.update(attempt=self.attempt, step=step, ids=ids[chosen])
                return chosen

            def watched_zeros(parameters):
                # The accumulator itself, which holds this worker's clipped sum when it is noised.
                local.update(zeros(parameters))
                return dict(local)

            def watched_call(self, *arguments):
                gradient = call(self, *arguments)
                note["local"] = np.concatenate([part.numpy().ravel() for part in local.values()])
                flat = np.concatenate([part.numpy().ravel() for part in gradient.values()])
                here = {"rank": self._collective.rank, "size": self._collective.size}
                part = notes / f"{os.getpid()}.part"
                with part.open("wb") as file:
                    np.savez(file, gradient=flat, **here, **note)
                name = "attempt-{attempt}-step-{step:03d}-rank-{rank}.npz"
                part.rename(notes / name.format(**note, **here))
                time.sleep(step_seconds)
                return gradient

            PoissonSampler.mask, dp_sgd.zero_sums = watched_mask, watched_zeros
            PrivateGradient.__call__ = watched_call
            super().work(*arguments)

    return WatchedWorker


if __name__ == "__main__":
    main(Path(sys.argv[1]))
