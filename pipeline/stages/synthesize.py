"""Sample Parquet shards from the released weights: post-processing, which costs no privacy."""

import json
from dataclasses import asdict
from pathlib import Path

from pipeline.cluster.sampling import make_shards
from pipeline.runs.directory import RunDirectory
from pipeline.stages.base import Context
from pipeline.stages.train import WEIGHTS
from pipeline.tracking.release import Release
from pipeline.tracking.tracker import StageRun
from synth.data.manifest import Manifest, ShardEntry, file_sha256
from synth.data.shards import plan_shards
from synth.storage import write_json


class Synthesize:
    """Writes `release/data/train-*.parquet` and `release/manifest.json`."""

    name = "synthesize"

    def run(self, context: Context, tracked: StageRun) -> None:
        """See `Stage.run`. Shards that exist and are intact are not made again."""
        run, spec = context.run, context.spec
        data, synthesize = spec.data, spec.synthesize
        counts = synthesize.class_counts(len(data.classes))
        shards = plan_shards(counts, synthesize.shard_rows)
        # Kept by weights: shards of other weights, say from a backup, do not belong to this set.
        notes = run.internal / "shards" / file_sha256(run.release / WEIGHTS)[:16]
        notes.mkdir(parents=True, exist_ok=True)
        made = {s.number: entry for s in shards if (entry := _made(run, notes, s.number))}
        missing = [shard for shard in shards if shard.number not in made]
        with context.progress.stage("synthesize", sum(counts)) as stage:
            before = sum(entry.rows for entry in made.values())
            stage.reach(before)

            def note(entry: ShardEntry) -> None:
                number = _number(entry)
                made[number] = entry
                write_json(notes / f"{number}.json", asdict(entry))
                stage.reach(sum(entry.rows for entry in made.values()))

            make_shards(
                spec,
                run.release / WEIGHTS,
                run.release,
                missing,
                len(shards),
                note,
                lambda images: stage.reach(before + images),
            )
        shape = (data.size, data.size, data.channels)
        entries = tuple(made[shard.number] for shard in shards)
        Manifest(shape, data.classes, counts, entries).write(run.release)
        tracked.metrics(Release.rows(sum(counts)))


def _number(entry: ShardEntry) -> int:
    return int(entry.file.split("train-")[1][:5])


def _made(run: RunDirectory, notes: Path, number: int) -> ShardEntry | None:
    """Return the entry of a shard that an earlier attempt made and that is unchanged."""
    note = notes / f"{number}.json"
    if not note.exists():
        return None
    entry = ShardEntry(**json.loads(note.read_text()))
    path = run.release / entry.file
    return entry if path.is_file() and file_sha256(path) == entry.sha256 else None
