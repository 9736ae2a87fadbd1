"""Shards to batches of NumPy arrays with tf.data: indices and palettes, split over hosts.

**Order.** The N records of a split are one sequence, in shard order, cut into V equal pieces
(*streams*). Host h of H owns streams h, h + H, h + 2H …; row r of a global batch comes from stream
r mod V, so the global batches are the same for any number of hosts that divides V, and files never
have to outnumber hosts. Inside an epoch a stream is reordered by (seed, epoch, stream) alone:

1. its chunks of shards are permuted, and the result is rotated by a random number of records, so
   that other records are neighbours, and others are left over at the end, in each epoch;
2. it is cut into windows, and each window is shuffled by a seed of its own.

Nothing is carried from one window to the next, so a run resumes by computing where it was, skipping
records by their lengths and reading one window at most. The order of records on disk is that of a
hash, so small windows are enough.

**Cost.** Serialized records are shuffled as references; a batch is parsed and copied at once. Every
record's checksum is verified. With `trainer.summary` this is the only user of TensorFlow.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trainer.metadata import DatasetError, DatasetInfo, SplitInfo

# TensorFlow reads these when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN announces itself at every start; nothing here runs one of its kernels.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

Batch = dict[str, np.ndarray]

# The accelerators belong to JAX; TensorFlow would reserve all their memory.
tf.config.set_visible_devices([], "GPU")
tf.get_logger().setLevel(logging.ERROR)

_WINDOW_RECORDS = 1024  # over all streams: 67 MB of 256 x 256 pictures
_MIN_WINDOW = 64
_REMOTE_BUFFER = 8 << 20
_INT64_MAX = np.iinfo(np.int64).max
_HASH_BUCKETS = 1 << 32

# (shard, first record, number of records), one row per run of consecutive records of a shard.
_Segments = np.ndarray


def steps_per_epoch(info: DatasetInfo, split: str, global_batch: int) -> int:
    """Returns the number of whole global batches in a split.

    Raises:
        DatasetError: if there is no such split.
        ValueError: if it has fewer records than one batch.
    """
    return _steps(info.split(split), global_batch)


def train_batches(
    info: DatasetInfo,
    split: str,
    *,
    global_batch: int,
    seed: int,
    start_step: int = 0,
    data_streams: int,
    host: int = 0,
    hosts: int = 1,
    cache: bool = False,
) -> Iterator[Batch]:
    """Returns this host's part of the training batches, without end.

    Local row i of a batch is row host + i * hosts of the global batch. Batch s of the iterator is
    that of step `start_step + s`; an epoch has `steps_per_epoch` of them. With B the local batch,
    S the side and K the colours, a batch is

    - `label` int32 (B,), and `id_hash` uint32 (B,), FarmHash64 of the id modulo 2^32;
    - `indexed`: `indices` uint8 (B, S, S) and `palette` uint8 (B, K, 3);
    - `packed`: `packed` uint8 (B, 5, S/8, S) and `palette` uint8 (B, K, 3);
    - `png` and `rgb`: `image` uint8 (B, S, S, 3).

    The arrays may be read-only. Arguments are checked at the call, records when they are read.

    Args:
        info: the data.
        split: name of the split to train on.
        global_batch: rows of a batch over all hosts.
        seed: other orders for another seed.
        start_step: the first step to deliver, counted from the start of the run.
        data_streams: V of the module's text; it fixes the order, so it belongs in the checkpoint.
        host: number of this host.
        hosts: number of hosts.
        cache: keep this host's decoded records in memory. They are read at the first `next`; the
            order is the same.

    Raises:
        DatasetError: if the split is not there or its pictures differ in size; from `next`, if a
            shard is missing, damaged, or holds another number of records than the metadata says.
        ValueError: if the numbers do not go together; it names the nearest ones that do.
    """
    shards = info.split(split)
    _check_streams(global_batch, data_streams, host, hosts)
    if start_step < 0:
        raise ValueError(f"start step is {start_step}; it must be 0 or more")
    steps = _steps(shards, global_batch)
    order = _Order(shards.shard_lengths, data_streams, steps * global_batch // data_streams, seed)
    streams = range(host, data_streams, hosts)
    local_batch = global_batch // hosts
    read = _Reader(info, shards)
    start = (start_step // steps, start_step % steps * (global_batch // data_streams))
    if cache:
        return _cached_batches(read, order, streams, start, local_batch)
    records = _shuffled(order, streams, start, read.segment)
    return _numpy(read.batches(records, local_batch), read)


def eval_batches(
    info: DatasetInfo, split: str, *, global_batch: int, host: int = 0, hosts: int = 1
) -> Iterator[Batch]:
    """Returns this host's part of a split, each record once over all hosts, in shard order.

    Batches are those of `train_batches` and have `mask`, bool (B,): False for the rows of zeros
    that fill the last batch. Every host gets the same number of batches.

    Args:
        info: the data.
        split: name of the split.
        global_batch: rows of a batch over all hosts.
        host: number of this host.
        hosts: number of hosts.

    Raises:
        DatasetError: as in `train_batches`.
        ValueError: if the number of hosts does not divide the batch.
    """
    shards = info.split(split)
    _check_streams(global_batch, hosts, host, hosts)
    read = _Reader(info, shards)
    order = _Order(shards.shard_lengths, hosts, shards.num_examples, seed=0)
    segments = _segments_dataset(order.stream(host), read.segment)
    local_batch = global_batch // hosts
    num_batches = -(-shards.num_examples // global_batch)
    return _padded(_numpy(read.batches(segments, local_batch), read), local_batch, num_batches)


def _steps(shards: SplitInfo, global_batch: int) -> int:
    if global_batch < 1:
        raise ValueError(f"a global batch of {global_batch} rows; it must be 1 or more")
    if shards.num_examples < global_batch:
        raise ValueError(
            f"split {shards.name!r} has {shards.num_examples} records, less than one global batch "
            f"of {global_batch}; choose a batch of at most {shards.num_examples}"
        )
    return shards.num_examples // global_batch


def _check_streams(global_batch: int, streams: int, host: int, hosts: int) -> None:
    if hosts < 1 or not 0 <= host < hosts:
        raise ValueError(f"host {host} of {hosts}; hosts are numbered from 0")
    if streams < 1 or streams % hosts:
        raise ValueError(
            f"{hosts} hosts do not divide --data_streams={streams}; "
            f"the nearest that fit: {_multiples(streams, hosts)}"
        )
    if global_batch < 1 or global_batch % streams:
        what = f"{streams} hosts do" if streams == hosts else f"--data_streams={streams} does"
        raise ValueError(
            f"{what} not divide the global batch of {global_batch}; "
            f"the nearest batches that fit: {_multiples(global_batch, streams)}"
        )


def _multiples(value: int, of: int) -> str:
    """Returns the positive multiples of `of` next to `value`, for an error message."""
    below = value // of * of
    return f"{below} and {below + of}" if below > 0 else f"{of}"


def _slice(segments: _Segments, start: int, stop: int) -> _Segments:
    """Returns records start to stop of the sequence that segments, int64 (n, 3), stand for."""
    shard, first, count = segments.T
    ends = np.cumsum(count)
    skip = np.clip(start - (ends - count), 0, count)
    keep = np.clip(stop - (ends - count), 0, count) - skip
    kept = np.stack([shard, first + skip, keep], axis=1)
    return kept[keep > 0]


@dataclasses.dataclass(frozen=True)
class _Order:
    """Which records a stream delivers, and in which order.

    Attributes:
        shard_lengths: records in each shard.
        streams: number of streams.
        used: records of each stream that an epoch uses; the rest of the stream is left out.
        seed: of the run.
    """

    shard_lengths: tuple[int, ...]
    streams: int
    used: int
    seed: int

    @property
    def window(self) -> int:
        """Records in a window; of the number of streams alone, as the order depends on it."""
        return max(_MIN_WINDOW, _WINDOW_RECORDS // self.streams)

    def stream(self, stream: int) -> _Segments:
        """Returns the segments, int64 (n, 3), of a stream in shard order."""
        lengths = np.array(self.shard_lengths, np.int64)
        whole = np.stack([np.arange(len(lengths)), np.zeros_like(lengths), lengths], axis=1)
        total = int(lengths.sum())
        return _slice(whole, stream * total // self.streams, (stream + 1) * total // self.streams)

    def epoch(self, stream: int, epoch: int, start: int) -> tuple[_Segments, np.int64]:
        """Returns what a stream delivers in an epoch, before its windows are shuffled.

        Args:
            stream: number of the stream.
            epoch: number of the epoch.
            start: records of the epoch to leave out at its start.

        Returns:
            The segments, int64 (n, 3), and the seed of the first of their windows; the next one's
            is one more.
        """
        rng = np.random.default_rng([self.seed, epoch, stream])
        chunks = rng.permutation(self.stream(stream))
        total = int(chunks[:, 2].sum())
        turn = int(rng.integers(total))
        turned = np.concatenate([_slice(chunks, turn, total), _slice(chunks, 0, turn)])
        seed = rng.integers(_INT64_MAX // 2, dtype=np.int64) + start // self.window
        return _slice(turned, start, self.used), seed


def _segments_dataset(
    segments: Any, read: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.data.Dataset]
) -> tf.data.Dataset:
    """Returns the elements of segments, int64 (n, 3), each read by `read(shard, first, count)`."""
    return tf.data.Dataset.from_tensor_slices(segments).flat_map(
        lambda segment: read(segment[0], segment[1], segment[2])
    )


def _shuffled(
    order: _Order,
    streams: range,
    start: tuple[int, int],
    read: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.data.Dataset],
) -> tf.data.Dataset:
    """Returns an endless dataset of one element of each stream in turn.

    Args:
        order: of the records.
        streams: the streams to deliver.
        start: epoch, and record of each stream in it, to start from.
        read: makes the dataset of a segment's elements.
    """
    first_epoch, first_record = start

    def plan(stream: np.int64, epoch: np.int64) -> tuple[_Segments, np.int64]:
        # Only whole windows can be left unread: a window must be shuffled before it can be cut.
        skip = first_record if epoch == first_epoch else 0
        return order.epoch(int(stream), int(epoch), skip // order.window * order.window)

    def epoch_records(stream: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
        # Dataset.shuffle mixes the graph's seed into its own. This sets it for the function being
        # traced only; otherwise the order would depend on tf.random.set_seed, which Keras calls.
        # Not 0: TensorFlow then compares the other seed, a tensor here, and that is an error.
        tf.random.set_seed(1)
        segments, seed = tf.numpy_function(plan, [stream, epoch], [tf.int64, tf.int64])
        segments, seed = tf.ensure_shape(segments, [None, 3]), tf.ensure_shape(seed, [])

        def shuffled(index: tf.Tensor, window: tf.data.Dataset) -> tf.data.Dataset:
            tf.random.set_seed(1)
            return window.shuffle(order.window, seed=seed + index, reshuffle_each_iteration=False)

        # window() and shuffle() pass the records on without copying them.
        windows = _segments_dataset(segments, read).window(order.window)
        rest = tf.where(epoch == first_epoch, np.int64(first_record % order.window), np.int64(0))
        return windows.enumerate().flat_map(shuffled).skip(rest)

    def stream_records(stream: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.range(first_epoch, _INT64_MAX).flat_map(
            lambda epoch: epoch_records(stream, epoch)
        )

    # Streams never end, so the turns stay fixed: row i of a batch is of stream i mod len(streams).
    return tf.data.Dataset.from_tensor_slices(np.array(streams, np.int64)).interleave(
        stream_records, cycle_length=len(streams), block_length=1
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads and parses the records of a split, and finds the file to blame for an error."""

    info: DatasetInfo
    shards: SplitInfo

    def __post_init__(self) -> None:
        if self.info.image_size < 1:
            raise DatasetError(
                f"{self.info.data_dir}: image_size is {self.info.image_size}, so pictures differ "
                "in size and make no batch; preprocess again with --image_size"
            )

    def segment(self, shard: tf.Tensor, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        """Returns serialized records first to first + count of a shard; an error if it has not."""
        path = tf.constant(self.shards.shard_paths)[shard]
        length = tf.constant(self.shards.shard_lengths, tf.int64)[shard]
        # One record more is asked for at the end of a shard, to see that there is none.
        more = tf.cast(first + count == length, tf.int64)
        records = self.shard(path).skip(first).take(count + more)
        return records.apply(tf.data.experimental.assert_cardinality(count))

    def shard(self, path: tf.Tensor | str) -> tf.data.Dataset:
        """Returns the serialized records of a shard; checksums are verified."""
        remote = "://" in self.info.data_dir
        return tf.data.TFRecordDataset(path, buffer_size=_REMOTE_BUFFER if remote else None)

    def batches(self, records: tf.data.Dataset, rows: int) -> tf.data.Dataset:
        """Returns batches of serialized records, parsed; the last one may be short."""
        if self.info.encoding in ("png", "rgb"):
            parsed = records.map(self._parse_png, num_parallel_calls=tf.data.AUTOTUNE).batch(rows)
        else:
            parsed = records.batch(rows).map(self._parse, num_parallel_calls=tf.data.AUTOTUNE)
        options = tf.data.Options()
        options.deterministic = True
        return parsed.prefetch(tf.data.AUTOTUNE).with_options(options)

    def _parse(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        """Parses serialized records, string (B,)."""
        size, colors = self.info.image_size, self.info.colors
        if self.info.encoding == "packed":
            name, shape = "packed", (5, size // 8, size)
        else:
            name, shape = "indices", (size, size)
        parsed = tf.io.parse_example(serialized, _features(name, "palette"))
        return {
            **_label_and_hash(parsed),
            name: _decode_raw(parsed[name], shape),
            "palette": _decode_raw(parsed["palette"], (colors, 3)),
        }

    def _parse_png(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        """Parses one serialized record."""
        parsed = tf.io.parse_single_example(serialized, _features("image"))
        image = tf.io.decode_png(parsed["image"], channels=3)
        size = self.info.image_size
        return {**_label_and_hash(parsed), "image": tf.ensure_shape(image, (size, size, 3))}

    def blame(self, error: Exception) -> DatasetError:
        """Returns the error that names the file, by reading all shards of the split again.

        TensorFlow's own errors do not name it (tensorflow#13463, #20835).
        """
        for path, length in zip(self.shards.shard_paths, self.shards.shard_lengths, strict=True):
            count = 0
            try:
                for _ in self.batches(self.shard(path), 1):
                    count += 1
            except tf.errors.NotFoundError:
                return DatasetError(f"{path}: missing; copy the whole folder, or preprocess again")
            except tf.errors.OpError as cause:
                return DatasetError(
                    f"{path}: record {count} of {length}: {_first_line(cause)}; "
                    f"copy the file again, or preprocess again"
                )
            if count != length:
                return DatasetError(
                    f"{path}: {count} records, dataset_info.json says {length}; "
                    "copy the whole folder, or preprocess again"
                )
        return DatasetError(
            f"{self.info.data_dir}: reading split {self.shards.name!r} failed, but every shard can "
            f"be read now; start again from the checkpoint ({_first_line(error)})"
        )


def _features(*names: str) -> dict[str, Any]:
    return {
        "id": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        **{name: tf.io.FixedLenFeature([], tf.string) for name in names},
    }


def _label_and_hash(parsed: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    id_hash = tf.strings.to_hash_bucket_fast(parsed["id"], _HASH_BUCKETS)
    return {
        "label": tf.cast(parsed["label"], tf.int32),
        "id_hash": tf.cast(id_hash, tf.uint32),
    }


def _decode_raw(values: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns uint8 (B, *shape) of byte strings (B,)."""
    flat = tf.ensure_shape(tf.io.decode_raw(values, tf.uint8), (None, int(np.prod(shape))))
    return tf.reshape(flat, (-1, *shape))


def _first_line(error: Exception) -> str:
    """Returns the gist of a TensorFlow error: its first line, without the op it came from."""
    text = str(getattr(error, "message", error)) or type(error).__name__
    text = text.splitlines()[0]
    return re.sub(r"^\{\{.*?\}\} ?|\s*\[Op:\w+\].*$", "", text)


def _numpy(batches: tf.data.Dataset, read: _Reader) -> Iterator[Batch]:
    """Yields batches as NumPy arrays that share TensorFlow's memory.

    Raises:
        DatasetError: if a record cannot be read.
    """
    try:
        yield from batches.as_numpy_iterator()
    except tf.errors.OpError as error:
        raise read.blame(error) from error


def _padded(batches: Iterator[Batch], rows: int, num_batches: int) -> Iterator[Batch]:
    """Yields exactly `num_batches` batches of `rows` rows, filled with zeros, with their mask."""
    last: Batch = {}
    for _ in range(num_batches):
        # A host whose part is a batch shorter than another's delivers a last one of filling only.
        batch = next(batches, None) or {name: value[:0] for name, value in last.items()}
        count = len(batch["label"])
        last = batch
        padded = {name: _filled(value, rows) for name, value in batch.items()}
        yield {**padded, "mask": np.arange(rows) < count}


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """Returns the rows, followed by as many rows of zeros as make `count`."""
    missing = count - len(rows)
    if not missing:
        return rows
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])


def _cached_batches(
    read: _Reader, order: _Order, streams: range, start: tuple[int, int], rows: int
) -> Iterator[Batch]:
    """Yields the batches of `train_batches` from memory.

    The shuffle cannot tell records from their numbers, so numbers are shuffled by the same graph.
    """
    starts = np.cumsum((0, *order.shard_lengths))
    parts = np.concatenate([order.stream(stream) for stream in streams])
    cache = _read_all(read, parts)
    place = np.zeros(starts[-1], np.int64)  # record number -> row of the cache
    numbers = [np.arange(count) + starts[shard] + first for shard, first, count in parts]
    place[np.concatenate(numbers)] = np.arange(parts[:, 2].sum())

    def read_numbers(shard: tf.Tensor, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        number = tf.constant(starts, tf.int64)[shard] + first
        return tf.data.Dataset.range(number, number + count)

    shuffled = _shuffled(order, streams, start, read_numbers).batch(rows).prefetch(8)
    for batch in shuffled.as_numpy_iterator():
        yield {name: value[place[batch]] for name, value in cache.items()}


def _read_all(read: _Reader, segments: _Segments) -> Batch:
    """Returns the parsed records of segments as one large batch."""
    total, filled = int(segments[:, 2].sum()), 0
    cache: Batch = {}
    for batch in _numpy(read.batches(_segments_dataset(segments, read.segment), 256), read):
        if not cache:
            cache = {
                name: np.empty((total, *value.shape[1:]), value.dtype)
                for name, value in batch.items()
            }
        count = len(batch["label"])
        for name, value in batch.items():
            cache[name][filled : filled + count] = value
        filled += count
    return cache
