"""Images as PNG, one by one or in a thread beside the sampling.

Shapes: N images, H height, W width, C channels (1 or 3).
"""

import io
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image


def encode_png(image_HWC: np.ndarray) -> bytes:
    """Encode one uint8 image [H,W,1 or 3] as PNG, without a time or any other metadata."""
    pixels = image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


class PngEncoder:
    """Encodes batches in their order while the caller makes the next (zlib releases the GIL).

    One thread, so that a sampling actor takes one processor and a little; a context manager, which
    waits for its thread.
    """

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._batches: list[Future[list[bytes]]] = []
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, images_NHWC: np.ndarray) -> None:
        """Have the uint8 images [N,H,W,C] encoded after those that were added before."""
        self._batches.append(self._thread.submit(lambda: [encode_png(i) for i in images_NHWC]))

    def pngs(self) -> list[bytes]:
        """Wait for all that was added and return it in order."""
        return [png for batch in self._batches for png in batch.result()]
