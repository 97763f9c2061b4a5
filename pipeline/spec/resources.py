"""Section `resources`: what the run may use of the machine or the cluster."""

from typing import Literal

from pipeline.spec.section import Count, NotNegative, Positive, Section


class Resources(Section):
    """Workers, processors and memory. Nothing here may change what is computed.

    `sampling_actors` "auto" takes as many as there are processors or GPUs for. Memory is
    in GiB; None leaves it to Ray.
    """

    workers: Count = 1
    cpus_per_worker: Count = 1
    gpus_per_worker: NotNegative = 0
    sampling_actors: Literal["auto"] | Count = "auto"
    memory_gib_per_worker: Positive | None = None
    object_store_gib: Positive | None = None
