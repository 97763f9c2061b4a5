"""From a spec to its method; imports no torch."""

from pipeline.spec import Spec
from synth.methods import method_class
from synth.methods.base import Method, PublicFacts, WorkerResources


def build_method(spec: Spec) -> Method:
    """Return the spec's method with its settings."""
    resources, cls = spec.resources, method_class(spec.method)
    return cls(
        PublicFacts(spec.data.records, spec.data.size, spec.data.channels, len(spec.data.classes)),
        spec.privacy.clip_norm,
        WorkerResources(
            "cuda" if resources.gpus_per_worker > 0 else "cpu",
            resources.memory_gib_per_worker,
            1 if resources.workers == "auto" else resources.workers,
        ),
        **{name: getattr(spec, name) for name in cls.sections},
    )
