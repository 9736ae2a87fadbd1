"""Reads every record of a finished data set back and names what is wrong with it.

Checksums catch harmed bytes. What they cannot catch is caught by the ids: each record must be in
the shard and at the place that its id demands, with the label that the manifest gives it, once.
"""

import hashlib
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline import plan as plans
from pipeline import storage, tfrecord
from pipeline.config import PACKED_ROWS
from pipeline.plan import Plan
from pipeline.quantize import LUMA_WEIGHTS
from pipeline.records import UInt8, decode, features, unpack
from pipeline.shards import Shard, digest, read_sidecar, shard_of
from pipeline.spool import Sorter

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
    lengths = dict(_read(storage.join(output_dir, plans.DATASET_INFO), _metadata_lengths))
    demands = _Demands(output_dir, plan)
    yield from _schema_problems(output_dir, plan)
    for split in plan.splits:
        counts = []
        for shard in plan.shards(split):
            seen: set[str] = set()
            yield from _verify_shard(output_dir, plan, shard, demands, seen, on_record)
            counts.append(len(seen))
        if lengths.get(split, [0] * len(counts)) != counts:
            yield (
                f"{plans.DATASET_INFO}: split {split} is said to have "
                f"{sum(lengths.get(split, [])):,} records, its shards have {sum(counts):,}"
            )
    yield from demands.unmet()


class _Demands:
    """What the manifests and the rejects say of each shard, one shard in memory at a time."""

    def __init__(self, output_dir: str, plan: Plan) -> None:
        sorter = Sorter(columns=5, by=3)
        for index in range(plan.manifests):
            sorter.extend(
                (row.split, shard_of(row.id, plan.splits[row.split].shards), row.id, row.label, 0)
                for row in _read(plans.manifest_path(output_dir, index), plans.read_manifest)
            )
        sorter.extend(
            # A reject does not tell its split, so it is looked for in each.
            (*place, reject.id, None, 1)
            for reject in _read(storage.join(output_dir, plans.REJECTS), plans.read_rejects)
            for place in _places(plan, reject.id)
        )
        self._plan = plan
        self._shards = sorter.sorted(lambda _split, _shard, *row: row).groups(2)
        self._odd = Sorter(columns=2, by=2)

    def of_shard(self, shard: Shard) -> tuple[dict[str, int], set[str]]:
        """Returns the labels by id, and the ids of the rejects, of a shard."""
        return self._read((shard.split, shard.index))

    def of_stranger(self, id: str) -> tuple[Shard, int] | None:
        """Returns shard and label of an id that was met in another shard, or None."""
        self._odd.extend([(id, "met")])
        for split, index in _places(self._plan, id):
            labels, _ = self._read((split, index))
            if id in labels:
                return Shard(split, index, self._plan.splits[split].shards), labels[id]
        return None

    def after_shard(self, shard: Shard, seen: set[str]) -> None:
        """Notes what is amiss when the records of a shard were all read."""
        labels, rejects = self.of_shard(shard)
        self._odd.extend((id, "lost") for id in labels.keys() - seen - rejects)
        self._odd.extend((id, "also a reject") for id in seen & rejects)

    def unmet(self) -> Iterator[str]:
        """Yields what was noted, sorted by id."""
        rows = self._odd.sorted(lambda id, what: (id, what))
        for id, group in itertools.groupby(rows, key=lambda row: row[0]):
            noted = {what for _, what in group}
            if "lost" in noted and "met" not in noted:
                yield f"{id}: in no shard, and not among the rejects"
            if "also a reject" in noted:
                yield f"{id}: in a shard, and also among the rejects"

    def _read(self, place: tuple[str, int]) -> tuple[dict[str, int], set[str]]:
        labels: dict[str, int] = {}
        rejects: set[str] = set()
        for id, label, is_reject in self._shards.get(place, ()):
            if is_reject:
                rejects.add(id)
            else:
                labels[id] = label
        return labels, rejects


def _places(plan: Plan, id: str) -> list[tuple[str, int]]:
    """Returns the shard of an id in each split that has any."""
    return [(name, shard_of(id, s.shards)) for name, s in plan.splits.items() if s.shards]


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


def _read(path: str, read: Callable[[str], Iterable[_T]]) -> Iterator[_T]:
    """Yields what is read; what is wrong with the file is an `UnverifiableError`."""
    try:
        yield from read(path)
    except FileNotFoundError as error:
        raise UnverifiableError(
            f"{path} is missing; the same preprocess command writes it again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnverifiableError(
            f"{path} is not understood: {error}; the same preprocess command writes it again"
        ) from error


def _metadata_lengths(path: str) -> list[tuple[str, list[int]]]:
    info = json.loads(storage.read_text(path))
    return [(s["name"], [int(n) for n in s["shardLengths"]]) for s in info["splits"]]


def _whole(path: str) -> list[str]:
    return [storage.read_text(path)]


def _schema_problems(output_dir: str, plan: Plan) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        features(plan.picture, plan.class_names).save_config(folder)
        for name in (plans.FEATURES, plans.LABELS):
            expected = storage.read_text(storage.join(folder, name))
            if [*_read(storage.join(output_dir, name), _whole)] != [expected]:
                yield f"{name}: is not what {plans.PREPROCESSING} demands"


def _verify_shard(
    output_dir: str,
    plan: Plan,
    shard: Shard,
    demands: _Demands,
    seen: set[str],
    on_record: Callable[[], None],
) -> Iterator[str]:
    name = shard.file_name
    labels, _ = demands.of_shard(shard)
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
                place = (shard, labels[id]) if id in labels else demands.of_stranger(id)
                if id in seen:
                    yield f"{where} ({id}): this id was read before"
                elif digest(id) < previous:
                    yield f"{where} ({id}): out of order in its shard"
                for problem in _problems(plan, shard, fields, place):
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
    demands.after_shard(shard, seen)


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
    plan: Plan, shard: Shard, fields: dict[str, Any], place: tuple[Shard, int] | None
) -> Iterator[str]:
    if place is None:
        yield "this id is not in the manifest of the input"
    else:
        home, demanded = place
        if home != shard:
            yield f"belongs to {home.file_name}"
        if fields.get("label") != demanded:
            yield f"label is {fields.get('label')}, the input says {demanded}"
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
