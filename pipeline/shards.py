"""Which shard a picture goes to and in what order; writing one shard and its sidecar.

sha256 of the id decides both, so a shard's content is fixed before any picture is read, by no one
but the id: not by the runner, the workers, or the pictures that turn out bad.

The sidecar is written after the shard. It is the proof that the shard is whole, and progress,
resume, report and verify all live on it.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Iterable
from typing import Any

from pipeline import storage, tfrecord
from pipeline.convert import Converted, Converter
from pipeline.listing import CarImage
from pipeline.read_ahead import read_ahead
from pipeline.records import DATASET_NAME
from pipeline.rejects import BadImageError, Reject
from pipeline.report import Thumbnail, thumbnail
from pipeline.statistics import Statistics

SIDECAR_FOLDER = "_shards"


@dataclasses.dataclass(frozen=True, order=True)
class Shard:
    """One of `count` shards of a split."""

    split: str
    index: int
    count: int

    @property
    def file_name(self) -> str:
        """Name of the TFRecord file in the output folder, as TFDS expects it."""
        return f"{DATASET_NAME}-{self.split}.tfrecord-{self.index:05d}-of-{self.count:05d}"

    @property
    def sidecar_name(self) -> str:
        """Path of the sidecar relative to the output folder."""
        return f"{SIDECAR_FOLDER}/{self.file_name}.json"


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What is known of a finished shard.

    Attributes:
        fingerprint: of the run that made it.
        shard: which one.
        records: pictures in it.
        bytes: size of the file.
        sha256: of the file.
        rejects: pictures left out of it, in shard order.
        statistics: of its pictures.
        contents: (hash of the pixels, id, label) of each picture, in shard order.
        thumbnails: of its first pictures; most shards of a large set have none.
    """

    fingerprint: str
    shard: Shard
    records: int
    bytes: int
    sha256: str
    rejects: tuple[Reject, ...]
    statistics: Statistics
    contents: tuple[tuple[str, str, int], ...]
    thumbnails: tuple[Thumbnail, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object, the inverse of `from_json`."""
        return {
            "fingerprint": self.fingerprint,
            "shard": dataclasses.asdict(self.shard),
            "records": self.records,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "rejects": [reject.to_json() for reject in self.rejects],
            "statistics": self.statistics.to_json(),
            "contents": [list(content) for content in self.contents],
            "thumbnails": [thumb.to_json() for thumb in self.thumbnails],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Sidecar":
        """Returns the sidecar that `to_json` wrote."""
        return cls(
            fingerprint=value["fingerprint"],
            shard=Shard(**value["shard"]),
            records=value["records"],
            bytes=value["bytes"],
            sha256=value["sha256"],
            rejects=tuple(Reject(**reject) for reject in value["rejects"]),
            statistics=Statistics.from_json(value["statistics"]),
            contents=tuple((hash_, id, label) for hash_, id, label in value["contents"]),
            thumbnails=tuple(Thumbnail.from_json(thumb) for thumb in value["thumbnails"]),
        )


def digest(id: str) -> bytes:
    """Returns what decides the shard of an id (first 8 bytes) and its place inside (all 32)."""
    return hashlib.sha256(id.encode()).digest()


def shard_of(id: str, count: int) -> int:
    """Returns which of `count` shards the picture `id` belongs to."""
    return int.from_bytes(digest(id)[:8], "big") % count


def read_sidecar(output_dir: str, shard: Shard) -> Sidecar | None:
    """Returns the sidecar of a shard, or None where there is none yet, or none that is whole."""
    try:
        data = storage.read_bytes(storage.join(output_dir, shard.sidecar_name))
    except FileNotFoundError:
        return None
    try:
        return Sidecar.from_json(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_finished(output_dir: str, shard: Shard, fingerprint: str) -> Sidecar | None:
    """Returns the sidecar of a shard that an earlier run finished, or None if it must be made.

    The file must be there in its full size; that its content is unharmed is for `verify`, since
    reading everything again would cost more than a resume saves.
    """
    sidecar = read_sidecar(output_dir, shard)
    if sidecar is None or sidecar.fingerprint != fingerprint:
        return None
    if storage.size(storage.join(output_dir, shard.file_name)) != sidecar.bytes:
        return None
    return sidecar


def write(
    output_dir: str,
    shard: Shard,
    images: Iterable[CarImage],
    converter: Converter,
    *,
    fingerprint: str,
    thumbnails: int,
    on_picture: Callable[[Converted | Reject], None] = lambda _: None,
) -> Sidecar:
    """Writes a shard, then its sidecar; each appears whole or not at all.

    Args:
        output_dir: folder of the shards.
        shard: which one.
        images: its pictures, in any order.
        converter: makes a record of a picture.
        fingerprint: of the run.
        thumbnails: how many pictures to keep a thumbnail of.
        on_picture: is told of each picture, for counters.

    Raises:
        OSError: if a picture cannot be read or the shard not written; nothing is left of it then.
    """
    rejects: list[Reject] = []
    contents: list[tuple[str, str, int]] = []
    kept: list[Thumbnail] = []
    statistics = Statistics()
    sha256, size = hashlib.sha256(), 0
    path = storage.join(output_dir, shard.file_name)
    with (
        storage.publishing(path) as file,
        # Closed even when this block raises: no thread goes on reading for a shard given up.
        contextlib.closing(_convert_all(images, converter)) as pictures,
    ):
        for image, result in pictures:
            on_picture(result)
            if isinstance(result, Reject):
                rejects.append(result)
                continue
            framed = tfrecord.frame(result.record)
            file.write(framed)
            sha256.update(framed)
            size += len(framed)
            statistics = statistics + result.statistics
            contents.append((result.content_hash, image.id, image.label))
            if len(kept) < thumbnails:
                kept.append(thumbnail(image.id, image.label, result.prepared, result.stored))
    sidecar = Sidecar(
        fingerprint=fingerprint,
        shard=shard,
        records=len(contents),
        bytes=size,
        sha256=sha256.hexdigest(),
        rejects=tuple(rejects),
        statistics=statistics,
        contents=tuple(contents),
        thumbnails=tuple(kept),
    )
    storage.publish(
        storage.join(output_dir, shard.sidecar_name), json.dumps(sidecar.to_json(), indent=1)
    )
    return sidecar


def _convert_all(
    images: Iterable[CarImage], converter: Converter
) -> Generator[tuple[CarImage, Converted | Reject]]:
    """Yields each picture in shard order with what became of it."""
    ordered = sorted(images, key=lambda image: digest(image.id))
    with contextlib.closing(read_ahead(_read, ordered, lambda image: image.size)) as contents:
        for image, data in zip(ordered, contents, strict=True):
            try:
                yield image, converter(image, data)
            except BadImageError as error:
                yield image, Reject(image.id, image.relative_path, error.reason, error.detail)


def _read(image: CarImage) -> bytes:
    return storage.read_bytes(image.path)
