"""Synthetic images as Parquet shards that Hugging Face `datasets` opens by their folder alone.

A shard is a function of (weights, spec, shard number): its labels come from `plan_shards`, its
randomness from `shard_generator`, and `write_shard` turns equal rows into equal bytes. So a shard
can be made by any worker, in any order, again.

Shape suffixes: N images, H height, W width, C channels.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from privacy.records import LabelledRecords
from synth.data.manifest import DATA, MANIFEST, ShardEntry, load_manifest
from synth.origin import MARK
from synth.storage import StoragePath, write_bytes

if TYPE_CHECKING:
    import torch

# Odd, so number · _WEYL mod 2³² never repeats for 2³² shards.
_WEYL = 0x9E3779B1
_PATTERN = "train-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].parquet"


@dataclass(frozen=True)
class Shard:
    """One piece of the synthetic set: its number, from 0, and the label of each of its rows."""

    number: int
    labels: tuple[int, ...]


def plan_shards(
    class_counts: Sequence[int], rows_per_shard: int, *, mixed: bool = False
) -> list[Shard]:
    """Cut the whole set into shards of `rows_per_shard` rows (the last: the rest).

    Class by class or, where `mixed`, all classes in every shard. Every class gets exactly its
    count; the plan depends on nothing but the arguments.

    Raises:
        InvalidRequest: a count is negative, all are zero, or `rows_per_shard` < 1.

    >>> [shard.labels for shard in plan_shards([3, 2], rows_per_shard=2)]
    [(0, 0), (0, 1), (1,)]
    >>> [shard.labels for shard in plan_shards([4, 2], rows_per_shard=3, mixed=True)]
    [(0, 1, 0), (0, 1, 0)]
    """
    if rows_per_shard < 1:
        raise InvalidRequest(f"rows per shard: at least 1 was expected, found {rows_per_shard}")
    if any(count < 0 for count in class_counts) or sum(class_counts) < 1:
        raise InvalidRequest("class counts: none negative and at least one image were expected")
    labels = np.repeat(np.arange(len(class_counts)), class_counts)
    if mixed:
        # Every class's images at even distances.
        places = np.concatenate(
            [(np.arange(count) + 0.5) / max(count, 1) for count in class_counts]
        )
        labels = labels[np.argsort(places, kind="stable")]
    pieces = (labels[row : row + rows_per_shard] for row in range(0, len(labels), rows_per_shard))
    return [Shard(number, tuple(piece.tolist())) for number, piece in enumerate(pieces)]


def shard_generator(
    seed: int, number: int, device: "torch.device | str" = "cpu"
) -> "torch.Generator":
    """Return the generator of shard `number`, independent of every other shard's.

    >>> shard_generator(3, 7).initial_seed() == shard_generator(3, 7).initial_seed()
    True
    """
    import torch

    start = int.from_bytes(hashlib.sha256(f"umbra shards {seed}".encode()).digest()[:4])
    high = int.from_bytes(hashlib.sha256(f"umbra shard {seed} {number}".encode()).digest()[:4])
    # Torch's CPU generator uses the low 32 bits only, where hashes of many shards would collide;
    # these walk through all 2³² values from a hashed start instead.
    low = (start + number * _WEYL) % 2**32
    return torch.Generator(device).manual_seed(high << 32 | low)


def to_uint8(x_NCHW: "torch.Tensor") -> np.ndarray:
    """Convert images in [−1, 1] to bytes [N,H,W,C]: clip, scale by 127.5, round.

    Raises UmbraError where a pixel is not finite.

    >>> import torch
    >>> to_uint8(torch.tensor([-1.0, 0.0, 2.0]).reshape(1, 1, 1, 3)).tolist()
    [[[[0], [128], [255]]]]
    """
    if not bool(x_NCHW.isfinite().all()):
        raise UmbraError(
            "the sampler made pixels that are not finite: the weights have diverged; "
            "train with a lower learning rate or sample from an earlier checkpoint"
        )
    bytes_NCHW = ((x_NCHW.double().clamp(-1, 1) + 1) * 127.5).round().byte()
    return bytes_NCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_uint8(images_NHWC: "np.ndarray | torch.Tensor") -> "torch.Tensor":
    """Convert bytes to float32 images [N,C,H,W] in [−1, 1] by x/127.5 − 1; `to_uint8` undoes it."""
    import torch

    # The scale is that of the type, never one measured on the data.
    return torch.as_tensor(images_NHWC).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def encode_png(image_HWC: np.ndarray) -> bytes:
    """Encode one uint8 image [H,W,1 or 3] as PNG, without a time or any other metadata."""
    pixels = image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


class PngEncoder:
    """Encodes batches in order in one thread, while the caller makes the next (zlib frees the GIL).

    A context manager, which waits for its thread.
    """

    def __enter__(self) -> Self:
        # One thread, so that a sampling actor occupies little more than one core.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._batches: list[Future[list[bytes]]] = []
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, images_NHWC: np.ndarray) -> None:
        """Queue the uint8 images [N,H,W,C] behind those that were added before."""
        self._batches.append(self._thread.submit(lambda: [encode_png(i) for i in images_NHWC]))

    def pngs(self) -> list[bytes]:
        """Wait for all that was added and return it in order."""
        return [png for batch in self._batches for png in batch.result()]


def shard_name(number: int, of: int) -> str:
    """Return the path of shard `number` of `of` below the data set folder.

    >>> shard_name(3, of=12)
    'data/train-00003-of-00012.parquet'
    """
    return f"{DATA}/train-{number:05d}-of-{of:05d}.parquet"


def write_shard(
    folder: StoragePath,
    shard: Shard,
    of: int,
    pngs: Sequence[bytes],
    *,
    class_names: Sequence[str],
    mark: Mapping[str, Any] | None = None,
) -> ShardEntry:
    """Write shard `shard.number` of `of` below the data set `folder`, atomically.

    Equal arguments give equal bytes (under one version of pyarrow).

    Args:
        folder: the data set folder; the file goes to its `data/`.
        shard: the plan of this shard.
        of: number of shards.
        pngs: an encoded image for each label of the shard.
        class_names: the name of label 0, 1, …
        mark: what the images were paid for and made from, from `weights_mark`.

    Raises:
        InvalidRequest: there is no such shard, or images, labels and class names do not agree.
        UmbraError: the disk is full.
    """
    if not 0 <= shard.number < of:
        raise InvalidRequest(f"shard {shard.number} of {of}: there is no such shard")
    known = all(0 <= label < len(class_names) for label in shard.labels)
    if len(pngs) != len(shard.labels) or not known:
        raise InvalidRequest(f"shard {shard.number}: images, labels and class names do not agree")
    file = shard_name(shard.number, of)
    data = _parquet(_table(shard, pngs, class_names, mark))
    write_bytes(folder / file, data)
    return ShardEntry(file, len(data), hashlib.sha256(data).hexdigest(), len(pngs))


def read_shards(folder: StoragePath) -> Iterator[LabelledRecords]:
    """Yield the images [N,H,W,C] of every shard with their labels, in order.

    With a `manifest.json` in the folder the shards are those it lists and must have its hashes;
    before there is one (a run that is not finished) the shards are the files in `data/`.

    Raises:
        IntegrityBroken: a shard is missing or damaged; the text names the file.
    """
    if (folder / MANIFEST).exists():
        for entry in load_manifest(folder).shards:
            yield _read(folder / entry.file, entry.sha256)
    else:
        found: Iterable[StoragePath] = (folder / DATA).glob(_PATTERN)
        for path in sorted(found, key=str):
            yield _read(path, None)


def shard_mark(path: StoragePath) -> Any:
    """Return the mark of a shard, None without one.

    Raises:
        IntegrityBroken: it is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            text = (pq.read_schema(file).metadata or {}).get(MARK.encode())
            return None if text is None else json.loads(text)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise IntegrityBroken(f"{path} is missing or damaged: make the shard again") from error


def _table(
    shard: Shard,
    pngs: Sequence[bytes],
    class_names: Sequence[str],
    mark: Mapping[str, Any] | None,
) -> pa.Table:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    if mark is not None:
        metadata[MARK] = json.dumps(mark, sort_keys=True)
    schema = pa.schema({"image": image, "label": pa.int64()}, metadata=metadata)
    rows = [
        {"bytes": png, "path": f"{shard.number:05d}-{row:06d}.png"} for row, png in enumerate(pngs)
    ]
    return pa.table({"image": rows, "label": list(shard.labels)}, schema=schema)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    # Every choice of the writer is fixed here: its defaults change between versions.
    pq.write_table(
        table,
        buffer,
        row_group_size=1000,
        version="2.6",
        data_page_version="1.0",
        data_page_size=1 << 20,
        # PNG is compressed already.
        compression="NONE",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        store_schema=True,
    )
    return buffer.getvalue()


def _read(path: StoragePath, sha256: str | None) -> LabelledRecords:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise IntegrityBroken(f"{path} cannot be read ({reason}): make the shard again") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityBroken(f"{path} does not have the sha256 of the manifest: it was changed")
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        column = table["image"].combine_chunks().field("bytes")
        images = [np.asarray(Image.open(io.BytesIO(png.as_py()))) for png in column]
        images_NHWC = np.stack([image.reshape(*image.shape[:2], -1) for image in images])
        labels = table["label"].to_numpy().astype(np.int64, casting="safe")
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        if not 0 <= labels.min() <= labels.max() < len(features["label"]["names"]):
            raise ValueError("labels without a class name")
        return LabelledRecords(images_NHWC, labels)
    except Exception as error:
        # Arrow and Pillow raise many kinds over damaged bytes.
        reason = type(error).__name__
        raise IntegrityBroken(f"{path} is damaged ({reason}): make the shard again") from error
