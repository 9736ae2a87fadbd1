"""Makes small data folders as `DESIGN.md` describes them, without the pipeline's code."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Record:
    """What one record says; the oracle for what a reader must return.

    Attributes:
        id: as in `train/00001`.
        label: class number.
        shard: number of the shard it is in.
        indices: uint8 (H, W), or None for `rgb`.
        palette: uint8 (colors, 3), or None for `rgb`.
        image: uint8 (H, W, 3), the picture in RGB.
    """

    id: str
    label: int
    shard: int
    indices: np.ndarray | None
    palette: np.ndarray | None
    image: np.ndarray


def pack(indices: np.ndarray) -> np.ndarray:
    """Packs uint8 (H, W) indices below 32 into uint8 (5, H/8, W), as the contract lays them out."""
    b = indices.reshape(8, indices.shape[0] // 8, indices.shape[1]).astype(np.int32)
    planes = [
        b[0] | (b[5] & 7) << 5,
        b[1] | (b[5] >> 3) << 5 | (b[7] >> 3 & 1) << 7,
        b[2] | (b[6] & 7) << 5,
        b[3] | (b[6] >> 3) << 5 | (b[7] >> 4 & 1) << 7,
        b[4] | (b[7] & 7) << 5,
    ]
    return np.stack(planes).astype(np.uint8)


def write(
    folder: Path,
    counts: dict[str, int],
    *,
    encoding: str = "indexed",
    image_size: int = 16,
    colors: int = 8,
    num_shards: int = 3,
    num_classes: int = 5,
    seed: int = 0,
    fingerprint: str = "00ff",
) -> dict[str, list[Record]]:
    """Writes a finished data folder with random pictures whose colours depend on their class.

    Args:
        folder: where; made if it is missing.
        counts: number of records of each split.
        encoding: `indexed`, `packed`, `png` or `rgb`.
        image_size: side of the pictures in pixels.
        colors: rows of a palette; `rgb` has none.
        num_shards: shards of each split.
        num_classes: labels are 0 to num_classes - 1.
        seed: other pictures for another seed.
        fingerprint: what `preprocessing.json` shall say.

    Returns:
        The records of each split, in the order in which the shards hold them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    records = {}
    entries = []
    for split, count in counts.items():
        rows = [
            _draw(
                rng, f"{split}/{n:05d}", n % num_classes, num_shards, image_size, colors, encoding
            )
            for n in range(1, count + 1)
        ]
        rows.sort(key=lambda row: (row.shard, _digest(row.id)))
        records[split] = rows
        lengths, total = [], 0
        for shard in range(num_shards):
            path = folder / f"stanford_cars-{split}.tfrecord-{shard:05d}-of-{num_shards:05d}"
            mine = [serialize(row, encoding) for row in rows if row.shard == shard]
            with tf.io.TFRecordWriter(str(path)) as writer:
                for serialized in mine:
                    writer.write(serialized)
            lengths.append(str(len(mine)))
            total += sum(map(len, mine))
        entries.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(total),
                "shardLengths": lengths,
            }
        )
    options = {
        "crop": "none",
        "crop_margin": 0.0,
        "image_size": image_size,
        "fit": "stretch",
        "colors": 0 if encoding == "rgb" else colors,
        "quantizer": "fast",
        "encoding": encoding,
    }
    write_json(
        folder / "preprocessing.json",
        {
            "format_version": 1,
            "fingerprint": fingerprint,
            "options": options,
            "has_boxes": True,
            "versions": {"numpy": np.__version__},
        },
    )
    names = [f"Make{n} Model Coupe {2000 + n}" for n in range(num_classes)]
    (folder / "label.labels.txt").write_text("".join(f"{name}\n" for name in names))
    write_json(
        folder / "dataset_info.json",
        {"fileFormat": "tfrecord", "name": "stanford_cars", "version": "1.0.0", "splits": entries},
    )
    return records


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as the pipeline does: readable, keys sorted."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def serialize(record: Record, encoding: str) -> bytes:
    """Returns the `tf.train.Example` of a record."""
    features = {
        "id": _bytes(record.id.encode()),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[record.label])),
        "bbox": tf.train.Feature(float_list=tf.train.FloatList(value=[0.1, 0.2, 0.8, 0.9])),
    }
    if encoding in ("indexed", "packed"):
        assert record.indices is not None
        assert record.palette is not None
        packed = record.indices if encoding == "indexed" else pack(record.indices)
        features["indices" if encoding == "indexed" else "packed"] = _bytes(packed.tobytes())
        features["palette"] = _bytes(record.palette.tobytes())
    else:
        stream = io.BytesIO()
        Image.fromarray(record.image).save(stream, "PNG")
        features["image"] = _bytes(stream.getvalue())
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _digest(record_id: str) -> bytes:
    return hashlib.sha256(record_id.encode()).digest()


def _draw(
    rng: np.random.Generator,
    record_id: str,
    label: int,
    num_shards: int,
    size: int,
    colors: int,
    encoding: str,
) -> Record:
    shard = int.from_bytes(_digest(record_id)[:8], "big") % num_shards
    if encoding == "rgb":
        image = rng.integers(0, 256, (size, size, 3), np.uint8)
        return Record(record_id, label, shard, None, None, image)
    indices = rng.integers(0, colors, (size, size), np.uint8)
    palette = rng.integers(0, 64, (colors, 3), np.uint8)
    palette[:, label % 3] += np.uint8(min(label, 5) * 32)  # something for a network to learn
    return Record(record_id, label, shard, indices, palette, palette[indices])
