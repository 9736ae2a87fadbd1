"""What a folder of shards says about itself: classes, sizes, counts, and how pictures were made.

The trainer knows the data through these files alone and never lists pictures. This module reads
text only, so it needs no TensorFlow. Local folders are tested; `gs://` goes through the same calls
of `etils.epath` and is unverified.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

DATASET_NAME = "stanford_cars"
SUPPORTED_FORMATS = (1,)
ENCODINGS = ("indexed", "packed", "png", "rgb")

_INFO = "dataset_info.json"
_PREPROCESSING = "preprocessing.json"
_LABELS = "label.labels.txt"


class DatasetError(Exception):
    """A data folder that cannot be used; one or two lines that name file, value and remedy."""


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split: its shards, in order, with the number of records in each.

    Attributes:
        name: such as `train`.
        shard_lengths: number of records in each shard; a shard may be empty.
        shard_paths: path of each shard, in the same order.
    """

    name: str
    shard_lengths: tuple[int, ...]
    shard_paths: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        """Number of records in all shards."""
        return sum(self.shard_lengths)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """All that the trainer knows about its data.

    Attributes:
        data_dir: the folder, as given.
        class_names: class of each label, in label order.
        image_size: side of the stored square picture in pixels; 0 where every picture kept its own.
        colors: rows of each palette; 0 for `rgb`.
        encoding: `indexed`, `packed`, `png` or `rgb`.
        splits: the splits that have records, by name.
        fingerprint: what made the bytes, in hexadecimal.
        preprocessing: all of `preprocessing.json`, to be copied into model folders.
    """

    data_dir: str
    class_names: tuple[str, ...]
    image_size: int
    colors: int
    encoding: str
    splits: Mapping[str, SplitInfo]
    fingerprint: str
    preprocessing: Mapping[str, Any]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_table_hash(self) -> str:
        """SHA-256 of the class names in order: two tables are the same if these are."""
        return class_table_hash(self.class_names)

    def split(self, name: str) -> SplitInfo:
        """Returns a split.

        Raises:
            DatasetError: if there is none of that name; it lists those there are.
        """
        if name not in self.splits:
            raise DatasetError(
                f"{self.data_dir}: no split {name!r}; it holds {', '.join(sorted(self.splits))}"
            )
        return self.splits[name]


def class_table_hash(class_names: tuple[str, ...]) -> str:
    """Returns the SHA-256, in hexadecimal, of class names in label order."""
    return hashlib.sha256("\n".join(class_names).encode()).hexdigest()


def read(data_dir: str | os.PathLike[str]) -> DatasetInfo:
    """Reads the metadata of a folder that `python -m pipeline preprocess` finished.

    Args:
        data_dir: the folder of the shards; local, or `gs://` (unverified).

    Raises:
        DatasetError: if the folder is not there or unfinished, a file of it is missing or does not
            say what it should, or a shard that the metadata counts is missing.
    """
    folder = epath.Path(data_dir)
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; make it with `python -m pipeline preprocess`"
        )
    if not (folder / _INFO).exists():
        raise DatasetError(
            f"{folder}: no {_INFO}, so preprocessing did not finish; run the same "
            "`python -m pipeline preprocess` command again, finished shards are kept"
        )
    preprocessing = _read_json(folder / _PREPROCESSING)
    version = preprocessing.get("format_version")
    if version not in SUPPORTED_FORMATS:
        raise DatasetError(
            f"{folder / _PREPROCESSING}: format_version is {version!r}, this trainer reads "
            f"{', '.join(map(str, SUPPORTED_FORMATS))}; preprocess again with this release"
        )
    try:
        options = preprocessing["options"]
        image_size, colors = int(options["image_size"]), int(options["colors"])
        encoding, fingerprint = str(options["encoding"]), str(preprocessing["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{folder / _PREPROCESSING}: missing or wrong entry ({error!r}); preprocess again"
        ) from error
    if encoding not in ENCODINGS:
        raise DatasetError(
            f"{folder / _PREPROCESSING}: encoding is {encoding!r}, this trainer reads "
            f"{', '.join(ENCODINGS)}; preprocess again with one of these"
        )
    class_names = _read_class_names(folder / _LABELS)
    return DatasetInfo(
        data_dir=os.fspath(data_dir),
        class_names=class_names,
        image_size=image_size,
        colors=colors,
        encoding=encoding,
        splits=_read_splits(folder),
        fingerprint=fingerprint,
        preprocessing=preprocessing,
    )


def _read_text(path: epath.Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: missing; preprocess again, or copy the whole folder"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error}); preprocess again") from error


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: not JSON ({error}); preprocess again") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: {type(value).__name__}, not a JSON object; preprocess again")
    return value


def _read_class_names(path: epath.Path) -> tuple[str, ...]:
    names = tuple(line for line in _read_text(path).split("\n") if line)
    if not names:
        raise DatasetError(f"{path}: no class names; preprocess again")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{path}: class {twice!r} is there twice; preprocess again")
    return names


def _read_splits(folder: epath.Path) -> dict[str, SplitInfo]:
    info = _read_json(folder / _INFO)
    try:
        splits = {
            entry["name"]: _split(folder, entry, info.get("fileFormat", "tfrecord"))
            for entry in info["splits"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{folder / _INFO}: missing or wrong entry ({error!r}); preprocess again"
        ) from error
    splits = {name: split for name, split in splits.items() if split.num_examples}
    if not splits:
        raise DatasetError(f"{folder / _INFO}: no split has records; preprocess again")
    # One listing instead of a question per shard: on an object store each costs a round trip.
    present = {path.name for path in folder.iterdir()}
    for split in splits.values():
        missing = [p for p in split.shard_paths if os.path.basename(p) not in present]
        if missing:
            raise DatasetError(
                f"{missing[0]}: missing ({len(missing)} of the {len(split.shard_paths)} shards of "
                f"split {split.name!r}); copy the whole folder, or preprocess again"
            )
    return splits


def _split(folder: epath.Path, entry: dict[str, Any], file_format: str) -> SplitInfo:
    """Returns the split of an entry of TFDS's `splits`; int64 are strings in its JSON."""
    lengths = tuple(int(length) for length in entry["shardLengths"])
    template = entry.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    names = [
        template.format(
            DATASET=DATASET_NAME,
            SPLIT=entry["name"],
            FILEFORMAT=file_format,
            SHARD_INDEX=f"{shard:05d}",
            NUM_SHARDS=f"{len(lengths):05d}",
            SHARD_X_OF_Y=f"{shard:05d}-of-{len(lengths):05d}",
        )
        for shard in range(len(lengths))
    ]
    return SplitInfo(entry["name"], lengths, tuple(os.fspath(folder / name) for name in names))
