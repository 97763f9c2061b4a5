"""Section `resources`: what the run may use of the machine or the cluster."""

from typing import Literal

from pydantic import model_validator

from pipeline.spec.section import (
    Count,
    FieldError,
    NotNegative,
    Positive,
    Section,
    raise_if_any,
)

Workers = Literal["auto"] | Count


class Resources(Section):
    """Workers, processors, memory and storage. Nothing here may change what is computed.

    "auto" takes as many workers as there is room for, also when that changes: training workers are
    then counted anew whenever their group starts. Memory is in GiB; None leaves it to Ray.
    `storage` is a folder or address (`s3://bucket/prefix`) that every machine of the cluster
    reaches, for checkpoints and the release; None keeps them in the run's folder.
    """

    workers: Workers = 1
    cpus_per_worker: Count = 1
    gpus_per_worker: NotNegative = 0
    sampling_actors: Workers = "auto"
    memory_gib_per_worker: Positive | None = None
    object_store_gib: Positive | None = None
    storage: str | None = None

    @model_validator(mode="after")
    def _gpus_are_whole_or_a_share(self) -> "Resources":
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            expected = "a share of one GPU up to 1, or a whole number"
            raise_if_any([FieldError(("gpus_per_worker",), expected, f"{gpus:g}")])
        return self

    def with_workers(self, workers: Workers) -> "Resources":
        """Return the same with other numbers of training workers and of sampling actors."""
        return self.model_copy(update={"workers": workers, "sampling_actors": workers})
