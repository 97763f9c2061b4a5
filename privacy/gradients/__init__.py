"""Engines for clipped per-record gradients, and the public rule that chooses between them."""

from privacy.gradients.base import GradientEngine
from privacy.gradients.engines import LayerwiseEngine, RecordEngine, TwoPassEngine
from privacy.gradients.graph import CapturedEngine

ENGINES: dict[str, GradientEngine] = {
    engine.name: engine
    for engine in (RecordEngine(), LayerwiseEngine(), CapturedEngine(), TwoPassEngine())
}

_LARGE_RECORD = 8192  # views times pixels


def choose(pixels: int, views: int, device_type: str, precision: str) -> GradientEngine:
    """Return the engine that is likely fastest; the choice has no influence on the sums.

    The rule sees public facts only: `pixels` = height times width of an image, K `views` of a
    record in a step, `torch.device.type`, and the precision of the model's products.

    >>> choose(28 * 28, 16, "cpu", "float32").name
    'record'
    """
    if device_type == "cuda":
        # A GPU needs many records a launch. The engine is new: its graph, and the memory of that,
        # go with the training that asked.
        return CapturedEngine()
    # From this size on a record outweighs what its calls cost, and its plain backward pass already
    # is its gradient. Measured with a worker of one thread on each of 2 cores, in units of the
    # non-private step, record by record and layer by layer: 8x8, K = 8: 4.5 and 1.36; 28x28, K = 8:
    # 1.22 and 1.19; K = 16: 1.06 and 1.11; K = 32: 1.01 and 1.09. In bfloat16, where the order of
    # memory that suits float32 does not serve, K = 32 (one such worker): 1.83 and 1.07.
    large = pixels * views >= _LARGE_RECORD
    one_by_one = large and device_type == "cpu" and precision == "float32"
    return ENGINES["record" if one_by_one else "layerwise"]
