"""How many images to sample at a time, from public sizes alone.

The noise of a shard is handed out batch after batch, so its pixels depend on the batch: what
chooses it may know the spec and nothing of the machine.
"""

from synth.precision import Precision

# Measured on CPU cores with 1 to 2 MiB of cache of their own: at 8x8 and 28x28 sampling is fastest
# where one feature map at full resolution fills about this much, and never below 32 rows (64 of
# half the bytes). A GPU wants as many as fit.
_CPU_BYTES = 2**20
_GPU_BYTES = 2**28
_LEAST_ROWS = 32  # in float32
_ELEMENT_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}


def chosen_batch(
    size: int, base: int, precision: Precision, *, guided: bool = False, on_gpu: bool = False
) -> int:
    """Return the number of images in a batch of the sampler.

    Args:
        size: pixels along each side of an image.
        base: channels of the network at full resolution.
        precision: what it runs in.
        guided: with guidance every image goes through the network twice, in one batch.
        on_gpu: where it is meant to run.
    """
    element = _ELEMENT_BYTES[precision]
    row = size**2 * base * element
    rows = max(_LEAST_ROWS * 4 // element, (_GPU_BYTES if on_gpu else _CPU_BYTES) // row)
    return rows // 2 if guided else rows
