"""The identity of the records that a budget was reserved for, verified wherever they are loaded."""

from dataclasses import dataclass, field

from pipeline.runs.directory import RunDirectory
from privacy.budget.identity import fingerprint
from privacy.errors import DataError
from privacy.keys import load_or_create_key
from privacy.records import LabelledRecords
from synth.storage import write_bytes

RUN_KEY = "run.key"
TRAIN, HOLDOUT = "train", "holdout"


@dataclass(frozen=True)
class DatasetIdentity:
    """A fingerprint under the run's own key, so that workers need not be trusted with the home's.

    Attributes:
        dataset: the declared name, for errors.
        key: the run's secret.
        fingerprint: of the records.
    """

    dataset: str
    key: bytes = field(repr=False)
    fingerprint: str = field(repr=False)

    @classmethod
    def keep(cls, run: RunDirectory, partition: str, records: LabelledRecords) -> None:
        """Record the identity of what is about to be reserved for in the run's internal folder."""
        key = load_or_create_key(run.internal / RUN_KEY)
        content = fingerprint(records, key)
        write_bytes(run.internal / f"{partition}-content", content.encode())

    @classmethod
    def of(cls, run: RunDirectory, dataset: str, partition: str) -> "DatasetIdentity":
        """Read back what `keep` wrote down."""
        content = (run.internal / f"{partition}-content").read_text()
        return cls(dataset, load_or_create_key(run.internal / RUN_KEY), content)

    def verify(self, loaded: LabelledRecords) -> LabelledRecords:
        """Return the records if they are those that the budget was reserved for.

        Raises:
            DataError: they are not.
        """
        if fingerprint(loaded, self.key) != self.fingerprint:
            raise DataError(
                f"the data set {self.dataset!r} is not the one that the budget was reserved for: "
                "it changed since this run was submitted. Restore it, or submit a new run."
            )
        return loaded
