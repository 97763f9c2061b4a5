"""Shards made on several nodes of one machine while their actors are killed, stopped and removed.

As a program it leaves the shards and a note of what happened in the folder that it is given: a
test's own process may be connected to another cluster already.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

# As an embedded cluster does; read when Ray is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import pipeline.cluster.sampling as subject
from pipeline.cluster.connection import cluster
from pipeline.spec import Spec, parse_spec
from synth.data.shards import plan_shards

CPUS = 2  # of each node; two nodes make room for four actors
SPEC = """\
name: noise
data:
  name: digits
  source: {kind: digits, split: train}
  records: 1438
  size: 8
  channels: 1
  classes: [round, square, other]
  public: true
privacy: {epsilon: 5, delta: 1e-4}
model: {base: 4, multipliers: [1], attention: [], blocks: 1}
train: {batch: 48, steps: 24}
synthesize: {per_class: [30, 31, 32], steps: 40, shard_rows: 8, batch: 3, guidance: 0.5}
"""


def spec() -> Spec:
    """The run that is asked for, whose shards take some tenths of a second each."""
    return parse_spec(SPEC, folder=Path.cwd())


def shards():
    """Its shards."""
    synthesize = spec().synthesize
    return plan_shards(synthesize.class_counts(3), synthesize.shard_rows)


def recording_sampler(folder: Path, together: int):
    """Return samplers that record which shard they are at, the first once `together` are there."""

    class RecordingSampler:
        def __init__(self, *arguments):
            from pipeline.cluster.sampling import ShardSampler

            self.sampler = ShardSampler(*arguments)

        def make(self, shard, of):
            begun, at_work = folder / f"begun-{os.getpid()}", folder / f"at-{os.getpid()}"
            begun.touch()
            at_work.write_text(str(shard.number))
            # After the harm another has to come, or nothing goes on.
            wanted = together + (folder / "harmed").exists()
            while len(list(folder.glob("begun-*"))) < wanted:
                time.sleep(0.02)
            entry = self.sampler.make(shard, of)
            at_work.unlink()
            return entry

        def progress(self):
            return self.sampler.progress()

    return RecordingSampler


def pids(folder: Path, kind: str) -> list[int]:
    """Return the processes that left a note of the kind, the oldest first."""
    notes = sorted(folder.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime_ns)
    return [int(path.name.split("-")[1]) for path in notes]


def make(weights: Path, folder: Path, harm) -> None:
    """Make all shards with `harm(notes)` beside it once four actors are at work."""
    notes = folder / "notes"
    notes.mkdir(parents=True)
    record: dict = {"entries": [], "images": []}

    def on_images(done):
        # Called by the thread that waits for the actors, the only one that may add a node.
        record["images"].append(done)
        if "harmed" not in record and len(pids(notes, "at")) == len(pids(notes, "begun")) == 4:
            time.sleep(0.2)
            record["harmed"] = harm(notes)
            (notes / "harmed").touch()

    original = subject.ShardSampler
    subject.ShardSampler = recording_sampler(notes, 4)
    try:
        subject.make_shards(
            spec(), weights, folder, shards(), len(shards()),
            lambda entry: record["entries"].append((entry.file, entry.rows, entry.sha256)),
            on_images,
        )  # fmt: skip
    finally:
        subject.ShardSampler = original
    for pid in record["harmed"]:
        with suppress(ProcessLookupError):  # a stopped process survives its cluster
            os.kill(pid, signal.SIGKILL)
    record["actors"] = pids(notes, "begun")
    record["unfinished"] = pids(notes, "at")
    (folder / "record.json").write_text(json.dumps(record))


def kill_two(notes: Path) -> list[int]:
    """Kill two of those that are at work."""
    victims = pids(notes, "at")[:2]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return victims


def main(folder: Path) -> None:
    """Make the shards twice: two actors are killed; then one is stopped and a node taken away."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    nodes.add_node(num_cpus=CPUS)
    removable = nodes.add_node(num_cpus=CPUS)

    def stop_one_and_take_a_node(notes: Path) -> list[int]:
        before = set(pids(notes, "begun"))
        nodes.remove_node(removable, allow_graceful=False)
        left = [pid for pid in before if Path(f"/proc/{pid}").exists()]
        os.kill(left[0], signal.SIGSTOP)
        nodes.add_node(num_cpus=CPUS)
        return left[:1]

    try:
        with cluster(nodes.address):
            weights = folder / "weights.safetensors"
            for name, harm in (("killed", kill_two), ("taken", stop_one_and_take_a_node)):
                begun = time.monotonic()
                make(weights, folder / name, harm)
                print(name, "took", time.monotonic() - begun, flush=True)
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
