"""The identity of the records that a budget was reserved for, verified wherever they are loaded."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.runs.directory import RunDirectory
from pipeline.spec import Data, Spec
from privacy.budget.facts import Shown
from privacy.budget.identity import HOLDOUT, TRAIN, Fingerprint, fingerprint
from privacy.errors import BudgetRefused, DataError
from privacy.keys import load_or_create_key
from privacy.ledger.records import Facts
from privacy.records import LabelledRecords
from synth.storage import write_bytes

RUN_KEY = "run.key"


@dataclass(frozen=True)
class DatasetIdentity:
    """A data set's name and its fingerprint under the run's own key."""

    # Not the home's key, so that workers need not be trusted with it.
    dataset: str
    key: bytes = field(repr=False)
    fingerprint: str = field(repr=False)

    @classmethod
    def keep(cls, run: RunDirectory, partition: str, records: LabelledRecords) -> None:
        """Record the identity of what will be reserved for in the run's internal folder.

        Raises DataError where that of other records is there: they may be reserved for already.
        """
        key, path = (
            load_or_create_key(run.internal / RUN_KEY),
            run.internal / f"{partition}-content",
        )
        content = fingerprint(records, key)
        if path.is_file() and path.read_text() != content:
            part = "training set" if partition == TRAIN else "holdout"
            raise DataError(
                f"the {part} changed since run {run.run_id} was submitted. Restore it, or give the "
                f"run up (umbra cancel --give-up {run.run_id}) and submit a new one."
            )
        write_bytes(path, content.encode())

    @classmethod
    def of(cls, run: RunDirectory, dataset: str, partition: str) -> "DatasetIdentity":
        """Read what `keep` recorded."""
        content = (run.internal / f"{partition}-content").read_text()
        return cls(dataset, load_or_create_key(run.internal / RUN_KEY), content)

    @classmethod
    def kept(cls, run: RunDirectory, dataset: str) -> dict[str, "DatasetIdentity"]:
        """Read all that `keep` recorded, by part: an older run kept no holdout's but a paid one."""
        parts = (TRAIN, HOLDOUT)
        found = [part for part in parts if (run.internal / f"{part}-content").is_file()]
        return {part: cls.of(run, dataset, part) for part in found}

    def verified(self, batches: Iterable[LabelledRecords]) -> Iterator[LabelledRecords]:
        """Yield the records; at the end raise DataError if they are not those reserved for."""
        found = Fingerprint(self.key)
        for batch in batches:
            found.add(batch)
            yield batch
        if str(found) != self.fingerprint:
            raise DataError(
                f"the data set {self.dataset!r} is not the one that the budget was reserved for: "
                "it changed since this run was submitted. Restore it, or submit a new run."
            )


def require_kept(known: Mapping[str, DatasetIdentity], shown: Shown) -> None:
    """Raise DataError where what is shown of a part could not be verified to be of that part."""
    for part, may_be in ((TRAIN, shown.train), (HOLDOUT, shown.holdout)):
        if may_be and part not in known:
            raise DataError(
                f"the run's internal folder lacks {part}-content, by which the images that may be "
                "shown are told from others. Restore it from a backup or submit a new run."
            )


def read_partition(
    data: Data, partition: str, reserved: DatasetIdentity | None = None
) -> Iterator[LabelledRecords]:
    """Read the training set or the holdout that a spec names, a part at a time.

    Raises DataError where it is not what the spec says or the budget was reserved for. Whether it
    is the latter shows at the end: use nothing before all was read.
    """
    part = data if partition == TRAIN else data.holdout
    assert part is not None  # noqa: S101 - who asks for a holdout has seen that there is one
    batches = part.source.batches(data.size, data.channels, data.classes)
    if data.drop_doubles:
        batches = _without_doubles(data, partition, batches)
    return batches if reserved is None else reserved.verified(batches)


def _without_doubles(
    data: Data, partition: str, batches: Iterable[LabelledRecords]
) -> Iterator[LabelledRecords]:
    """Yield one of every record, and of the training set none that lies in a public holdout.

    Taking one record out of the source takes at most one out of what is yielded: which of two equal
    records is kept makes no difference, and what is public is fixed.
    """
    public: set[bytes] = set()
    if partition == TRAIN and data.holdout is not None and data.holdout.public:
        # Only of a public one: what a private holdout holds may not decide what is trained on.
        for batch in data.holdout.source.batches(data.size, data.channels, data.classes):
            public |= {_digest(value) for value in batch.values}
    seen: set[tuple[bytes, int]] = set()
    for batch in batches:
        kept = []
        for i, (value, label) in enumerate(zip(batch.values, batch.labels, strict=True)):
            known = (_digest(value), int(label))
            if known[0] not in public and known not in seen:
                seen.add(known)
                kept.append(i)
        if kept:
            yield LabelledRecords(batch.values[kept], batch.labels[kept])


def _digest(value: np.ndarray) -> bytes:
    return hashlib.blake2b(value.tobytes(), digest_size=16).digest()


def load_partition(
    data: Data, partition: str, reserved: DatasetIdentity | None = None
) -> LabelledRecords:
    """Load all that `read_partition` reads."""
    return LabelledRecords.concatenate(read_partition(data, partition, reserved))


def require_declared(spec: Spec, facts: Facts) -> None:
    """Raise BudgetRefused on a spec that says something else of its data set than the ledger."""
    data, privacy = spec.data, spec.privacy
    said = {f"privacy.{name}": getattr(privacy, name) for name in privacy.model_fields_set}
    declared: dict[str, object] = {
        "privacy.unit": facts.unit,
        "privacy.records_per_unit": facts.records_per_unit,
    }
    # Silence, and `public: false`, leave it to the ledger.
    if data.public:
        said["data.public"], declared["data.public"] = True, facts.public
    if data.holdout is not None and data.holdout.public:
        said["data.holdout.public"], declared["data.holdout.public"] = True, facts.public_holdout
    for name, value in declared.items():
        if name in said and said[name] != value:
            raise BudgetRefused(
                f"{name}: {data.name!r} was declared with {_yaml(value)}, which no spec can "
                f"change; found {_yaml(said[name])}. State the declared one, or leave it out."
            )


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
