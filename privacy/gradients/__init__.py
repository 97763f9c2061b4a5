"""Ways to compute clipped per-record gradients, and the public rule that chooses between them."""

from privacy.errors import InvalidRequest
from privacy.gradients.base import (
    ClippedSum,
    GradientEngine,
    ModelCall,
    RecordLoss,
    refuse_record_mixing,
)
from privacy.gradients.captured import CapturedEngine
from privacy.gradients.compiled import CompiledEngine
from privacy.gradients.layerwise import LayerwiseEngine
from privacy.gradients.record import RecordEngine
from privacy.gradients.two_pass import TwoPassEngine
from privacy.gradients.vmap import VmapEngine

__all__ = [
    "ENGINES",
    "CapturedEngine",
    "ClippedSum",
    "CompiledEngine",
    "GradientEngine",
    "LayerwiseEngine",
    "ModelCall",
    "RecordEngine",
    "RecordLoss",
    "TwoPassEngine",
    "choose",
    "engine",
    "refuse_record_mixing",
]

# What needs nothing but torch's own operations; `CompiledEngine` is checked against them.
ENGINES: dict[str, GradientEngine] = {
    e.name: e
    for e in (
        RecordEngine(),
        VmapEngine(),
        LayerwiseEngine(),
        CapturedEngine(),
        TwoPassEngine(),
    )
}

# Views times pixels from which a record on a CPU outweighs what its calls cost, and its plain
# backward pass already is its gradient. Measured with a worker of one thread on each of 2 cores, in
# units of the non-private step, record by record and layer by layer: 8x8, K = 8: 4.5 and 1.36;
# 28x28, K = 8: 1.22 and 1.19; K = 16: 1.06 and 1.11; K = 32: 1.01 and 1.09. In bfloat16, where the
# order of memory that suits float32 does not serve, K = 32 (one such worker): 1.83 and 1.07.
_LARGE_RECORD = 8192

# Views times pixels of a training that a GPU takes some twenty minutes for: a compiler, which takes
# a few, is asked from there on. Computed from operations (0.8 MFLOP a pixel of the 28x28 network,
# 150 TFLOP/s), not measured.
_LONG = 2**38


def engine(name: str) -> GradientEngine:
    """Return the engine of that name.

    Raises:
        InvalidRequest: if there is none.
    """
    if name not in ENGINES:
        raise InvalidRequest(
            f"there is no gradient engine {name!r}; choose one of {', '.join(sorted(ENGINES))}"
        )
    return ENGINES[name]


def choose(
    pixels: int, views: int, device_type: str, precision: str, records: float
) -> GradientEngine:
    """Return the engine that is likely fastest; which one it is has no influence on the sums.

    The rule sees public facts only: in float32 on a CPU a record is worth a pass of its own from
    about 8192 pixels times views on, while a GPU always needs many records a launch. What a GPU's
    takes is one that nobody else has: its graph, and the memory of that, go with the training that
    asked.

    Args:
        pixels: height times width of an image.
        views: K, noised copies of a record in a step.
        device_type: `torch.device.type` of the model.
        precision: that the model's products are computed in, such as "float32".
        records: expected for this worker in all steps of the training, one as often as it is
            drawn; 0 is too few to compile anything for.
    """
    if device_type == "cuda":
        return CompiledEngine() if records * views * pixels >= _LONG else CapturedEngine()
    large = pixels * views >= _LARGE_RECORD
    one_by_one = large and device_type == "cpu" and precision == "float32"
    return ENGINES["record" if one_by_one else "layerwise"]
