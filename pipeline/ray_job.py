"""Which Ray job a run was handed to."""

from dataclasses import dataclass

JOB_VARIABLE = "UMBRA_JOB"  # in a job's environment: its own submission id


@dataclass(frozen=True)
class RayJob:
    """A job of a Ray cluster's Jobs API.

    Attributes:
        address: of the Jobs API, `http://host:8265`; holds no password.
        submission_id: the job's name there.
    """

    address: str
    submission_id: str

    @classmethod
    def of(cls, run_id: str, start: int, address: str) -> "RayJob":
        """Return the job for the `start`-th handing over of a run: two have never the same name."""
        return cls(address, f"umbra-{run_id}-{start}")

    def __str__(self) -> str:
        return f"Ray job {self.submission_id} at {self.address}"
