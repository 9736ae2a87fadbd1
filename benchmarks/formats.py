"""The same pictures in every format that `benchmarks.input` compares, made once in a work folder.

The four encodings of this project come from `python -m pipeline preprocess`. The others are written
from their records, in the same order: indices compressed by zlib, JPEG and raw RGB at the training
size, ArrayRecord plain and with zstd. Original JPEGs are copied into one TFRecord file, as TFDS's
`cars196` holds them. A file that is there already is kept.
"""

import dataclasses
import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import (  # type: ignore[import-untyped]
    ArrayRecordWriter,
)
from PIL import Image
from rich.console import Console
from tensorflow_datasets.proto import tf_example_pb2

from pipeline import records, tfrecord
from trainer import metadata

SPLIT = "train"
ENCODINGS = ("indexed", "packed", "png", "rgb")
JPEG_QUALITY = 95

JPEG, RAW, ZLIB = "jpeg.tfrecord", "raw.tfrecord", "zlib.tfrecord"
ORIGINALS = "originals.tfrecord"
ARRAY_RECORD, ARRAY_RECORD_ZSTD = "plain.array_record", "zstd.array_record"


@dataclasses.dataclass(frozen=True)
class Work:
    """The work folder.

    Attributes:
        folder: where all files are.
        image_size: side of the pictures in pixels.
    """

    folder: Path
    image_size: int

    def shards(self, encoding: str) -> metadata.DatasetInfo:
        """Returns the metadata of an encoding's shards."""
        return metadata.read(self.folder / encoding)

    def path(self, name: str) -> str:
        """Returns the path of a file that is not the pipeline's."""
        return str(self.folder / name)

    def bytes_per_picture(self, name: str) -> float:
        """Returns the mean size of a record on disk, of an encoding or a file of this module."""
        if name in ENCODINGS:
            size = sum(map(os.path.getsize, self.shards(name).split(SPLIT).shard_paths))
        else:
            size = os.path.getsize(self.path(name))
        return size / self.pictures(name)

    def pictures(self, name: str) -> int:
        """Returns the number of records, of an encoding or a file of this module."""
        if name in ENCODINGS:
            return self.shards(name).split(SPLIT).num_examples
        return int((self.folder / f"{name}.count").read_text())

    def make(self, names: set[str], images: Path, originals: Path, console: Console) -> None:
        """Writes what is not there yet.

        Args:
            names: encodings, and files of this module; what they are made from comes with them.
            images: pictures in a layout that the pipeline knows.
            originals: folder of JPEGs at their own size.
            console: for progress.
        """
        sources = {"indexed"} | ({"rgb"} if names & {JPEG, RAW} else set())
        for encoding in ENCODINGS:
            if encoding in names | sources:
                self._preprocess(images, encoding, console)
        for name, write, rows in (
            (ZLIB, _tfrecord, lambda: self._compressed()),
            (JPEG, _tfrecord, lambda: self._of_pictures(_jpeg)),
            (RAW, _tfrecord, lambda: self._of_pictures(np.ndarray.tobytes)),
            (ORIGINALS, _tfrecord, lambda: _originals(originals)),
            (ARRAY_RECORD, _array_record("uncompressed"), lambda: self._plain()),
            (ARRAY_RECORD_ZSTD, _array_record("zstd:3"), lambda: self._plain()),
        ):
            if name in names and not (self.folder / f"{name}.count").exists():
                console.print(f"writing {name}", style="dim")
                count = write(self.path(name), rows())
                (self.folder / f"{name}.count").write_text(str(count))

    def _preprocess(self, images: Path, encoding: str, console: Console) -> None:
        if (self.folder / encoding / "dataset_info.json").exists():
            return
        console.print(f"python -m pipeline preprocess … --encoding={encoding}", style="dim")
        command = [sys.executable, "-m", "pipeline", "preprocess", f"--data_dir={images}"]
        command += [f"--output_dir={self.folder / encoding}", f"--image_size={self.image_size}"]
        command += ["--colors=0"] if encoding == "rgb" else [f"--encoding={encoding}"]
        subprocess.run([*command, "--max_reject_fraction=1"], check=True)

    def _records(self, encoding: str) -> Iterator[dict[str, Any]]:
        for path in self.shards(encoding).split(SPLIT).shard_paths:
            with open(path, "rb") as file:
                for record in tfrecord.read(file):
                    yield records.decode(record.data)

    def _compressed(self) -> Iterator[bytes]:
        for record in self._records("indexed"):
            indices = zlib.compress(record["indices"], 6)
            yield example(record["label"], indices=indices, palette=record["palette"])

    def _of_pictures(self, encode: Callable[[np.ndarray], bytes]) -> Iterator[bytes]:
        for record in self._records("rgb"):
            picture = np.asarray(Image.open(io.BytesIO(record["image"])))
            yield example(record["label"], image=encode(picture))

    def _plain(self) -> Iterator[bytes]:
        """Yields label uint16, palette and indices, one after the other."""
        for record in self._records("indexed"):
            yield record["label"].to_bytes(2, "little") + record["palette"] + record["indices"]


def example(label: int, **fields: bytes) -> bytes:
    """Returns a serialized `tf.train.Example`."""
    message = tf_example_pb2.Example()
    message.features.feature["label"].int64_list.value.append(label)
    for name, value in fields.items():
        message.features.feature[name].bytes_list.value.append(value)
    return bytes(message.SerializeToString(deterministic=True))


def _jpeg(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _originals(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*.jpg")):
        yield example(0, image=path.read_bytes())


def _tfrecord(path: str, rows: Iterable[bytes]) -> int:
    count = 0
    with open(path, "wb") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007
            file.write(tfrecord.frame(row))
    return count


def _array_record(compression: str) -> Callable[[str, Iterable[bytes]], int]:
    def write(path: str, rows: Iterable[bytes]) -> int:
        writer = ArrayRecordWriter(path, f"group_size:1,{compression}")
        count = 0
        for count, row in enumerate(rows, 1):  # noqa: B007
            writer.write(row)
        writer.close()
        return count

    return write
