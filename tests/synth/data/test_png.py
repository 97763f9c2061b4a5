import io
import threading

import numpy as np
import pytest
from PIL import Image

from synth.data.shards import PngEncoder, encode_png


def batches(*counts, channels=1):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (n, 8, 8, channels), dtype=np.uint8) for n in counts]


@pytest.mark.parametrize("channels", [1, 3])
def test_in_order_and_as_if_one_by_one(channels):
    given = batches(3, 0, 50, 1, channels=channels)
    with PngEncoder() as encoder:
        for images in given:
            encoder.add(images)
        pngs = encoder.pngs()
    images = np.concatenate(given)
    assert pngs == [encode_png(image) for image in images]
    back = [np.asarray(Image.open(io.BytesIO(png))).reshape(8, 8, channels) for png in pngs]
    assert np.array_equal(np.stack(back), images)


def test_an_error_in_the_thread_reaches_the_caller():
    with PngEncoder() as encoder:
        encoder.add(np.zeros((1, 8, 8, 7), np.uint8))
        with pytest.raises(TypeError):
            encoder.pngs()


def test_no_thread_outlives_the_block():
    before = threading.active_count()
    with pytest.raises(KeyError), PngEncoder() as encoder:
        encoder.add(batches(5)[0])
        raise KeyError
    assert threading.active_count() == before
