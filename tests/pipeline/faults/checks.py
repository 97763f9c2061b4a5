"""What must hold for a run after any fault."""

import hashlib
import json
from collections import Counter

import pyarrow.parquet as pq

from privacy.ledger import Kind, Ledger
from tests.pipeline.faults.small_runs import SHARD_ROWS, SHARDS, STEPS, Site


def message_problems(stderr: str) -> list[str]:
    """A command that fails says why in a sentence."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    wrong = []
    if "Traceback" in stderr:
        wrong.append("a traceback on standard error")
    if not lines or not lines[-1].startswith("umbra: "):
        wrong.append(f"its last word was {lines[-1:] or 'nothing'}")
    return wrong


def ledger_problems(site: Site, reservation: str, executed: Counter[int]) -> list[str]:
    """Every step was charged to its attempt before it was taken, and no more than T in all."""
    charged: Counter[int] = Counter()
    for row in Ledger.open(site.home.ledger_url).rows(Kind.CHARGE, reservation=reservation):
        charged[row.content["attempt"]] += row.content["steps"]
    wrong = [
        f"attempt {attempt} took {steps} steps and charged {charged[attempt]}"
        for attempt, steps in executed.items()
        if steps > charged[attempt]
    ]
    if charged.total() > STEPS:
        wrong.append(f"{charged.total()} steps were charged of {STEPS}")
    return wrong


def charged_steps(site: Site, reservation: str) -> int:
    """Steps that were charged to a reservation."""
    rows = Ledger.open(site.home.ledger_url).rows(Kind.CHARGE, reservation=reservation)
    return sum(row.content["steps"] for row in rows)


def release_problems(release) -> list[str]:
    """Read every shard as a stranger would, and hold it against the manifest."""
    manifest = json.loads((release / "manifest.json").read_bytes())
    listed = {entry["file"]: entry for entry in manifest["shards"]}
    present = {path.relative_to(release).as_posix() for path in (release / "data").iterdir()}
    wrong = []
    if set(listed) != present or len(listed) != len(manifest["shards"]) or len(listed) != SHARDS:
        wrong.append(f"{len(listed)} shards are listed, {len(present)} files are there")
    labels: Counter[int] = Counter()
    images = set()
    for name in sorted(present & set(listed)):
        entry, data = listed[name], (release / name).read_bytes()
        if (len(data), hashlib.sha256(data).hexdigest()) != (entry["bytes"], entry["sha256"]):
            wrong.append(f"{name} is not as the manifest says")
            continue
        table = pq.read_table(release / name)
        found = table.column("label").to_pylist()
        labels.update(found)
        images.update(image["bytes"] for image in table.column("image").to_pylist())
        if len(found) != entry["rows"] or len(found) != SHARD_ROWS:
            wrong.append(f"{name} has {len(found)} rows")
    if len(images) < labels.total():
        wrong.append(f"only {len(images)} of {labels.total()} images differ: a shard is repeated")
    if set(labels.values()) != {SHARDS * SHARD_ROWS // 10} or len(labels) != 10:
        wrong.append(f"images of each class: {dict(labels)}")
    return wrong
