"""An image is taken exactly as it is stored and shown, or refused with what to do."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.sources.images import decode_image
from privacy.errors import DataError


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(depth, colour, *extra, size=8, samples=1):
    """Return a black PNG; colour 0 is grey, 2 is RGB."""
    header = struct.pack(">IIBBBBB", size, size, depth, colour, 0, 0, 0)
    row = bytes(1 + (size * samples * depth + 7) // 8)
    data = chunk(b"IDAT", zlib.compress(row * size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + data + chunk(b"IEND")


def encoded(mode="RGB", kind="PNG", size=8, **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(value, kind):
    exif = Image.Exif()
    exif[0x112] = value
    return encoded("RGB", kind, exif=exif)


def animated():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "channels", "text"),
    [
        (png(16, 2, samples=3), 3, "8-bit RGB image was expected, found 16-bit RGB; convert"),
        (png(16, 0), 1, "8-bit grey image was expected, found mode I;16; convert"),
        (png(8, 0, chunk(b"tRNS", b"\0\x07")), 1, "found a transparent colour: remove"),
        (png(8, 2, chunk(b"tRNS", bytes(6)), samples=3), 3, "found a transparent colour"),
        (encoded("RGBA"), 3, "found mode RGBA; convert"),
        (encoded("LA"), 1, "found mode LA"),
        (encoded("P"), 3, "found mode P"),
        (encoded("1"), 1, "found mode 1"),
        (encoded("CMYK", "JPEG"), 3, "found mode CMYK"),
        (animated(), 3, "found several frames: save the one"),
        (encoded("RGB", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]), 3, "fram"),
        *((oriented(value, "JPEG"), 3, "found an EXIF orientation: turn") for value in range(2, 9)),
        (oriented(6, "PNG"), 3, "found an EXIF orientation"),
        (encoded("RGB", "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="6"/>'), 3, "EXIF orientation"),
        (encoded("RGB", "WEBP"), 3, "a PNG or JPEG was expected, found something else; convert"),
        (b"", 1, "PNG or JPEG"),
        (encoded("RGB", "JPEG")[:-40], 3, "damaged"),
        (png(8, 0, size=60_000)[:100], 1, "8×8 pixels was expected, found|Bomb"),
    ],
)
def test_pixels_that_would_change_are_refused_with_what_to_do(data, channels, text):
    with pytest.raises(DataError, match=rf"here: .*{text}"):
        decode_image(data, 8, channels, "here")


@pytest.mark.parametrize("value", [0, 1, 9])
def test_an_orientation_that_turns_nothing_is_no_reason(value):
    assert decode_image(oriented(value, "JPEG"), 8, 3, "here").shape == (8, 8, 3)


@pytest.mark.parametrize("exif", [b"II*\0\x08\0\0\0\xff\0" + b"\x12\x01\3\0", b"MM\0*", b"II*\0"])
def test_a_decoder_answers_with_an_image_or_one_error_and_nothing_else(exif, capfd, recwarn):
    data = encoded("RGB", "JPEG", exif=b"Exif\0\0" + exif)
    try:
        assert decode_image(data, 8, 3, "here").shape == (8, 8, 3)
    except DataError as error:
        assert str(error).startswith("here: ")
    assert capfd.readouterr() == ("", "")
    assert list(recwarn) == []


def test_what_is_taken_is_what_datasets_shows():
    datasets = pytest.importorskip("datasets")
    for data in (encoded("L"), png(4, 0), png(2, 0)):
        shown = datasets.Image().decode_example({"path": None, "bytes": data})
        assert np.array_equal(decode_image(data, 8, 1, "here")[..., 0], np.asarray(shown))


def test_a_reason_of_the_system_is_told(tmp_path):
    with pytest.raises(DataError, match="No such file or directory"):
        decode_image(tmp_path / "absent.png", 8, 1, "here")
