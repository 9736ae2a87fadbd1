"""The loaders that `benchmarks.input` compares: each yields batches without end.

Each is written as its users write it, with as much parallelism as it can use, and with its records
in file order unless the name says shuffled. All deliver a batch on the host: pictures, or what the
device makes pictures of, and labels.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags

from benchmarks import formats
from benchmarks.formats import SPLIT, Work

BATCH = 128
_PREFETCH = 4  # as the trainer
_MANY = 1000

Make = Callable[[Work], Iterator[Any]]


@dataclasses.dataclass(frozen=True)
class Loader:
    """A row of the table.

    Attributes:
        name: of the row.
        files: what it reads: an encoding, or a file of `benchmarks.formats`.
        make: makes the endless iterator of batches.
    """

    name: str
    files: str
    make: Make


def ours(encoding: str, streams: int = 0) -> Make:
    """The trainer's own: in file order as in evaluation, or shuffled over a number of streams."""

    def make(work: Work) -> Iterator[Any]:
        from trainer import data

        info = work.shards(encoding)
        if streams:
            return data.train_batches(info, SPLIT, global_batch=BATCH, seed=0, data_streams=streams)
        # A split of many times the same shards, so that no epoch ends during a measurement.
        split = info.split(SPLIT)
        long = dataclasses.replace(
            split,
            shard_lengths=split.shard_lengths * _MANY,
            shard_paths=split.shard_paths * _MANY,
        )
        info = dataclasses.replace(info, splits={SPLIT: long})
        return data.eval_batches(info, SPLIT, global_batch=BATCH)

    return make


def bare(work: Work, tuned: bool) -> Iterator[Any]:
    """Serialized records of the `indexed` shards, checksums verified, nothing parsed.

    Args:
        work: the work folder.
        tuned: with the trainer's buffer and allocator settings.
    """
    import tensorflow as tf

    from trainer import data

    if tuned:
        data._keep_freed_memory()
    paths = list(work.shards("indexed").split(SPLIT).shard_paths)
    records = tf.data.TFRecordDataset(paths, buffer_size=0 if tuned else None)
    # Not as_numpy_iterator, which would copy each record into a Python object.
    return iter(records.repeat().batch(BATCH))


def tf_pictures(name: str, decode: str) -> Make:
    """A TFRecord file of Examples with an `image`, by plain tf.data."""

    def make(work: Work) -> Iterator[Any]:
        import tensorflow as tf

        size = work.image_size

        def picture(data: Any) -> Any:
            if decode == "jpeg":
                return tf.io.decode_jpeg(data, channels=3)
            resized = tf.image.resize(tf.io.decode_jpeg(data, channels=3), (size, size))
            return tf.cast(resized, tf.uint8)

        def parse(record: Any) -> Any:
            parsed = tf.io.parse_single_example(record, _fields("image"))
            return picture(parsed["image"]), parsed["label"]

        def parse_raw(batch: Any) -> Any:
            parsed = tf.io.parse_example(batch, _fields("image"))
            flat = tf.io.decode_raw(parsed["image"], tf.uint8)
            return tf.reshape(flat, (-1, size, size, 3)), parsed["label"]

        records = tf.data.TFRecordDataset(work.path(name)).repeat()
        if decode == "raw":
            batches = records.batch(BATCH).map(parse_raw, num_parallel_calls=tf.data.AUTOTUNE)
        else:
            batches = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH)
        return iter(batches.prefetch(_PREFETCH).as_numpy_iterator())

    return make


def tf_zlib(work: Work) -> Iterator[Any]:
    """Indices compressed by zlib one by one, by plain tf.data."""
    import tensorflow as tf

    size = work.image_size

    def parse(batch: Any) -> Any:
        parsed = tf.io.parse_example(batch, _fields("indices", "palette"))
        indices = tf.io.decode_compressed(parsed["indices"], "ZLIB")
        return (
            tf.reshape(tf.io.decode_raw(indices, tf.uint8), (-1, size, size)),
            tf.io.decode_raw(parsed["palette"], tf.uint8),
            parsed["label"],
        )

    records = tf.data.TFRecordDataset(work.path(formats.ZLIB)).repeat().batch(BATCH)
    batches = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(_PREFETCH)
    return iter(batches.as_numpy_iterator())


def grain(name: str) -> Make:
    """Grain with ArrayRecord, shuffled by its index sampler; a process for each core."""

    def make(work: Work) -> Iterator[Any]:
        import grain

        size, colors = work.image_size, work.shards("indexed").colors
        first = 2 + 3 * colors

        def parse(record: bytes) -> dict[str, Any]:
            values = np.frombuffer(record, np.uint8)
            return {
                "label": np.frombuffer(record, np.uint16, 1)[0],
                "palette": values[2:first].reshape(colors, 3),
                "indices": values[first:].reshape(size, size),
            }

        source = grain.sources.ArrayRecordDataSource(work.path(name))
        dataset = grain.MapDataset.source(source).shuffle(seed=0).map(parse).repeat().batch(BATCH)
        # Quickest of those tried on one core; with the defaults, 16 threads that read a record each
        # and batches made after them, a picture cost five times as much.
        batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        cores = len(os.sched_getaffinity(0))
        if cores > 1:
            flags.FLAGS.mark_as_parsed()  # its worker processes read some
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=cores))
        return iter(batches)

    return make


def _fields(*names: str) -> dict[str, Any]:
    import tensorflow as tf

    return {
        "label": tf.io.FixedLenFeature([], tf.int64),
        **{name: tf.io.FixedLenFeature([], tf.string) for name in names},
    }


BARE = "bare TFRecordDataset, its settings as ours"
INDEXED, SHUFFLED = "ours, indexed", "ours, indexed, shuffled"
PNG = "ours, png"
GRAIN = "Grain, ArrayRecord of indices, shuffled"
ORIGINAL = "original JPEG, decode and resize"

LOADERS = (
    Loader(BARE, "indexed", lambda work: bare(work, tuned=True)),
    Loader("bare TFRecordDataset, defaults", "indexed", lambda work: bare(work, tuned=False)),
    Loader(INDEXED, "indexed", ours("indexed")),
    Loader(SHUFFLED, "indexed", ours("indexed", streams=8)),
    Loader("ours, indexed, shuffled, one stream", "indexed", ours("indexed", streams=1)),
    Loader("ours, packed", "packed", ours("packed")),
    Loader("ours, packed, shuffled", "packed", ours("packed", streams=8)),
    Loader(PNG, "png", ours("png")),
    Loader("ours, rgb (PNG)", "rgb", ours("rgb")),
    Loader("indices, zlib each, tf.data", formats.ZLIB, tf_zlib),
    Loader("JPEG at 224, tf.data", formats.JPEG, tf_pictures(formats.JPEG, "jpeg")),
    Loader(ORIGINAL, formats.ORIGINALS, tf_pictures(formats.ORIGINALS, "resize")),
    Loader("raw RGB, tf.data", formats.RAW, tf_pictures(formats.RAW, "raw")),
    Loader(GRAIN, formats.ARRAY_RECORD, grain(formats.ARRAY_RECORD)),
    Loader("the same with zstd", formats.ARRAY_RECORD_ZSTD, grain(formats.ARRAY_RECORD_ZSTD)),
)
