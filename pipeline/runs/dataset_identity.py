"""The identity of the records that a budget was reserved for, verified wherever they are loaded."""

from dataclasses import dataclass, field

from pipeline.runs.directory import RunDirectory
from pipeline.spec import Data
from privacy.budget.identity import fingerprint
from privacy.errors import DataError
from privacy.keys import load_or_create_key
from privacy.records import LabelledRecords
from synth.storage import write_bytes

RUN_KEY = "run.key"
TRAIN, HOLDOUT = "train", "holdout"


@dataclass(frozen=True)
class DatasetIdentity:
    """A data set's name and its fingerprint under the run's own key."""

    # Not the home's key, so that workers need not be trusted with it.
    dataset: str
    key: bytes = field(repr=False)
    fingerprint: str = field(repr=False)

    @classmethod
    def keep(cls, run: RunDirectory, partition: str, records: LabelledRecords) -> None:
        """Record the identity of what will be reserved for in the run's internal folder."""
        key = load_or_create_key(run.internal / RUN_KEY)
        content = fingerprint(records, key)
        write_bytes(run.internal / f"{partition}-content", content.encode())

    @classmethod
    def of(cls, run: RunDirectory, dataset: str, partition: str) -> "DatasetIdentity":
        """Read what `keep` recorded."""
        content = (run.internal / f"{partition}-content").read_text()
        return cls(dataset, load_or_create_key(run.internal / RUN_KEY), content)

    def verify(self, loaded: LabelledRecords) -> LabelledRecords:
        """Return the records, or raise DataError if they are not those reserved for."""
        if fingerprint(loaded, self.key) != self.fingerprint:
            raise DataError(
                f"the data set {self.dataset!r} is not the one that the budget was reserved for: "
                "it changed since this run was submitted. Restore it, or submit a new run."
            )
        return loaded


def load_partition(
    data: Data, partition: str, reserved: DatasetIdentity | None = None
) -> LabelledRecords:
    """Load the training set or the holdout that a spec names.

    Raises DataError where it is not what the spec says or the budget was reserved for.
    """
    part = data if partition == TRAIN else data.holdout
    assert part is not None  # noqa: S101 - who asks for a holdout has seen that there is one
    records = part.source.load(data.size, data.channels, data.classes)
    return records if reserved is None else reserved.verify(records)
