"""Reads every record of a finished data set back and names what is wrong with it.

Checksums catch harmed bytes. What they cannot catch is caught by the ids: each record must be in
the shard and at the place that its id demands, with the label that the manifest gives it, once.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline import plan as plans
from pipeline import storage, tfrecord
from pipeline.config import PACKED_ROWS
from pipeline.listing import CarImage
from pipeline.plan import Plan
from pipeline.quantize import LUMA_WEIGHTS
from pipeline.records import UInt8, decode, features, unpack
from pipeline.shards import Shard, digest, read_sidecar, shard_of

_T = TypeVar("_T")


class UnverifiableError(ValueError):
    """The folder holds no finished data set of this program."""


def verify(output_dir: str, on_record: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Yields one line for each thing that is wrong; none at all where nothing is.

    Args:
        output_dir: folder of a finished run.
        on_record: is called for each record read.

    Raises:
        UnverifiableError: if the folder holds no plan, the job has not committed, or a file that
            tells what should be there cannot be read.
        PlanError: if `preprocessing.json` cannot be understood.
        OSError: if a file cannot be read.
    """
    plan = _committed_plan(output_dir)
    lengths = _read(storage.join(output_dir, plans.DATASET_INFO), _metadata_lengths)
    rows = {
        row.id: row
        for index in range(plan.manifests)
        for row in _read(plans.manifest_path(output_dir, index), _manifest)
    }
    rejects = _read(storage.join(output_dir, plans.REJECTS), plans.read_rejects)
    rejected = {reject.id for reject in rejects}
    yield from _schema_problems(output_dir, plan)
    seen: set[str] = set()
    for split in plan.splits:
        counts = []
        for shard in plan.shards(split):
            before = len(seen)
            yield from _verify_shard(output_dir, plan, shard, rows, seen, on_record)
            counts.append(len(seen) - before)
        if lengths.get(split, [0] * len(counts)) != counts:
            yield (
                f"{plans.DATASET_INFO}: split {split} is said to have "
                f"{sum(lengths.get(split, [])):,} records, its shards have {sum(counts):,}"
            )
    for id in sorted(rows.keys() - seen - rejected):
        yield f"{id}: in no shard, and not among the rejects"
    for id in sorted(seen & rejected):
        yield f"{id}: in a shard, and also among the rejects"


def _committed_plan(output_dir: str) -> Plan:
    plan = plans.read(output_dir)
    if plan is None:
        raise UnverifiableError(
            f"{output_dir} has no {plans.PREPROCESSING}: it was not made by this program"
        )
    if not storage.exists(storage.join(output_dir, plans.DATASET_INFO)):
        raise UnverifiableError(
            f"{output_dir} has no {plans.DATASET_INFO}: the job did not finish; run it again"
        )
    return plan


def _read(path: str, read: Callable[[str], _T]) -> _T:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise UnverifiableError(
            f"{path} is missing; the same preprocess command writes it again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnverifiableError(
            f"{path} is not understood: {error}; the same preprocess command writes it again"
        ) from error


def _metadata_lengths(path: str) -> dict[str, list[int]]:
    info = json.loads(storage.read_text(path))
    return {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}


def _manifest(path: str) -> list[CarImage]:
    return list(plans.read_manifest(path))


def _schema_problems(output_dir: str, plan: Plan) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        features(plan.picture, plan.class_names).save_config(folder)
        for name in (plans.FEATURES, plans.LABELS):
            expected = storage.read_text(storage.join(folder, name))
            if _read(storage.join(output_dir, name), storage.read_text) != expected:
                yield f"{name}: is not what {plans.PREPROCESSING} demands"


def _verify_shard(
    output_dir: str,
    plan: Plan,
    shard: Shard,
    rows: dict[str, CarImage],
    seen: set[str],
    on_record: Callable[[], None],
) -> Iterator[str]:
    name = shard.file_name
    sidecar = read_sidecar(output_dir, shard)
    if sidecar is None:
        yield f"{name}: its sidecar {shard.sidecar_name} is missing or broken"
    elif sidecar.fingerprint != plan.fingerprint:
        yield f"{name}: made by another run, with other options or input"
    previous = b""
    sha256 = hashlib.sha256()
    try:
        with storage.open_binary(storage.join(output_dir, name)) as file:
            for number, record in enumerate(tfrecord.read(_Tee(file, sha256))):
                where = f"{name}: record {number} at offset {record.offset:,}"
                on_record()
                try:
                    fields = decode(record.data)
                except ValueError as error:
                    yield f"{where}: {error}"
                    continue
                id_bytes = fields.get("id")
                if not isinstance(id_bytes, bytes):
                    yield f"{where}: no id"
                    continue
                id = id_bytes.decode(errors="replace")
                for problem in _problems(plan, shard, fields, id, rows, seen, previous):
                    yield f"{where} ({id}): {problem}"
                previous = max(previous, digest(id))
                seen.add(id)
    except FileNotFoundError:
        yield f"{name}: the file is missing"
    except tfrecord.CorruptRecordError as error:
        yield f"{name}: {error}; what follows was not read"
    else:
        if sidecar is not None and sha256.hexdigest() != sidecar.sha256:
            yield f"{name}: its sha256 is not the one in {shard.sidecar_name}"


class _Tee(io.BytesIO):
    """Passes reads on and hashes what was read."""

    def __init__(self, file: BinaryIO, sha256: Any) -> None:
        super().__init__()
        self._file, self._sha256 = file, sha256

    def read(self, size: int | None = -1) -> bytes:
        data = self._file.read(-1 if size is None else size)
        self._sha256.update(data)
        return data


def _problems(
    plan: Plan,
    shard: Shard,
    fields: dict[str, Any],
    id: str,
    rows: dict[str, CarImage],
    seen: set[str],
    previous: bytes,
) -> Iterator[str]:
    if id in seen:
        yield "this id was read before"
    elif digest(id) < previous:
        yield "out of order in its shard"
    row = rows.get(id)
    if row is None:
        yield "this id is not in the manifest of the input"
    else:
        if (row.split, shard_of(id, shard.count)) != (shard.split, shard.index):
            yield f"belongs to {Shard(row.split, shard_of(id, shard.count), shard.count).file_name}"
        if fields.get("label") != row.label:
            yield f"label is {fields.get('label')}, the input says {row.label}"
    label = fields.get("label")
    if not isinstance(label, int) or not 0 <= label < len(plan.class_names):
        yield f"label is {label}, outside 0 to {len(plan.class_names) - 1}"
    yield from _bbox_problems(fields.get("bbox"))
    yield from _picture_problems(plan, fields)
    expected = {"id", "label", "bbox"} | (
        {"image"} if plan.picture.is_png else {_index_field(plan), "palette"}
    )
    if fields.keys() != expected:
        yield f"has the fields {sorted(fields)}, not {sorted(expected)}"


def _bbox_problems(bbox: Any) -> Iterator[str]:
    if not isinstance(bbox, list) or len(bbox) != 4:
        yield f"bbox is {bbox}, not four numbers"
    elif not (0 <= bbox[0] <= bbox[2] <= 1 and 0 <= bbox[1] <= bbox[3] <= 1):
        yield f"bbox is {bbox}, not (ymin, xmin, ymax, xmax) between 0 and 1"


def _index_field(plan: Plan) -> str:
    return "packed" if plan.picture.encoding == "packed" else "indices"


def _picture_problems(plan: Plan, fields: dict[str, Any]) -> Iterator[str]:
    if plan.picture.is_png:
        yield from _png_problems(plan, fields.get("image"))
    else:
        yield from _indexed_problems(plan, fields.get(_index_field(plan)), fields.get("palette"))


def _indexed_problems(plan: Plan, raw: Any, raw_palette: Any) -> Iterator[str]:
    size, colors = plan.picture.image_size, plan.picture.colors
    packed = plan.picture.encoding == "packed"
    shape = (5, size // PACKED_ROWS, size) if packed else (size, size)
    if not isinstance(raw, bytes) or len(raw) != np.prod(shape):
        yield f"{_index_field(plan)} is not {shape} bytes"
        return
    if not isinstance(raw_palette, bytes) or len(raw_palette) != colors * 3:
        yield f"palette is not {(colors, 3)} bytes"
        return
    planes = np.frombuffer(raw, np.uint8).reshape(shape)
    indices = unpack(planes) if packed else planes
    palette = np.frombuffer(raw_palette, np.uint8).reshape(colors, 3)
    if indices.max() >= colors:
        yield f"index {indices.max()} in a palette of {colors} colours"
    if not _is_in_order(palette):
        yield "the palette is not ordered by luminance"


def _is_in_order(palette: UInt8) -> bool:
    luma = palette.astype(int) @ LUMA_WEIGHTS
    keys = list(zip(luma.tolist(), *palette.T.tolist(), strict=True))
    return keys == sorted(keys)


def _png_problems(plan: Plan, data: Any) -> Iterator[str]:
    size, colors = plan.picture.image_size, plan.picture.colors
    if not isinstance(data, bytes):
        yield "no image"
        return
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            mode, shape, rgb = image.mode, image.size, np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        yield f"image cannot be decoded: {error}"
        return
    if size and shape != (size, size):
        yield f"image is {shape[0]}x{shape[1]}, not {size}x{size}"
    if mode != ("P" if colors else "RGB"):
        yield f"image is a PNG of mode {mode}"
    used = len(np.unique(rgb.reshape(-1, 3), axis=0)) if colors else 0
    if used > colors:
        yield f"image has {used} colours, more than {colors}"
