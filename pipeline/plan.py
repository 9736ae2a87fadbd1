"""What a run is going to make, decided before any picture is read, and the claim on its folder.

A plan is written to `preprocessing.json` before the work starts. Its fingerprint covers all that
makes the bytes: the options, the format, the versions of the libraries that touch pixels or
records, and the input. A folder that holds another plan is refused with the difference named.
"""

import dataclasses
import hashlib
import heapq
import itertools
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from pipeline import storage
from pipeline.config import JobOptions, PictureOptions
from pipeline.listing import CarImage, Listing
from pipeline.records import DATASET_NAME, FORMAT_VERSION
from pipeline.rejects import Reject, to_jsonl
from pipeline.shards import SIDECAR_FOLDER, Shard

PREPROCESSING = "preprocessing.json"
DATASET_INFO = "dataset_info.json"  # written last: it is the commit
FEATURES = "features.json"
LABELS = "label.labels.txt"
REJECTS = "rejects.jsonl"
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
MISSING = f"{SIDECAR_FOLDER}/missing.jsonl"
ROWS_PER_MANIFEST = 10_000
THUMBNAILS_PER_SPLIT = 48


class PlanError(ValueError):
    """The output folder holds something else than what this run would make."""


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """A split: pictures found and missing at listing, and the number of its shards."""

    found: int
    missing: int
    shards: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that fixes the output; see the module's docstring.

    Attributes:
        picture: options that decide a picture's bytes.
        layout: name of the input's layout.
        class_names: in label order.
        has_boxes: whether the input has boxes.
        examples_per_shard: mean number of records a shard.
        splits: by name.
        manifests: number of files that list the input.
        input_sha256: over every row of the input, sorted by id.
        versions: of the libraries that touch the bytes.
    """

    picture: PictureOptions
    layout: str
    class_names: tuple[str, ...]
    has_boxes: bool
    examples_per_shard: int
    splits: dict[str, SplitPlan]
    manifests: int
    input_sha256: str
    versions: dict[str, str]

    @property
    def found(self) -> int:
        """Pictures found at listing, over all splits."""
        return sum(split.found for split in self.splits.values())

    @property
    def missing(self) -> int:
        """Pictures annotated but not found, over all splits."""
        return sum(split.missing for split in self.splits.values())

    @property
    def fingerprint(self) -> str:
        """sha256 of the plan as JSON."""
        text = json.dumps(self._fields(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def shards(self, split: str) -> list[Shard]:
        """Returns the shards of a split."""
        count = self.splits[split].shards
        return [Shard(split, index, count) for index in range(count)]

    def all_shards(self) -> list[Shard]:
        """Returns the shards of all splits."""
        return [shard for split in self.splits for shard in self.shards(split)]

    def thumbnails(self, shard: Shard) -> int:
        """Returns how many thumbnails a shard keeps, so that a split has a contact sheet of them.

        Of a large set only the first shards keep one each.
        """
        if shard.index >= THUMBNAILS_PER_SPLIT:
            return 0
        return -(-THUMBNAILS_PER_SPLIT // shard.count)

    def _fields(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "options": self.picture.to_json(),
            "examples_per_shard": self.examples_per_shard,
            "layout": self.layout,
            "has_boxes": self.has_boxes,
            "class_names": list(self.class_names),
            "splits": {name: dataclasses.asdict(split) for name, split in self.splits.items()},
            "manifests": self.manifests,
            "input_sha256": self.input_sha256,
            "versions": self.versions,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `preprocessing.json`."""
        return {"name": DATASET_NAME, "fingerprint": self.fingerprint, **self._fields()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Plan":
        """Returns the plan that `to_json` wrote.

        Raises:
            ValueError: if it is of another format version.
        """
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        if value.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"format version {value.get('format_version')}, but this program "
                f"writes and reads {FORMAT_VERSION}"
            )
        return cls(
            picture=PictureOptions.from_json(value["options"]),
            layout=value["layout"],
            class_names=tuple(value["class_names"]),
            has_boxes=value["has_boxes"],
            examples_per_shard=value["examples_per_shard"],
            splits={name: SplitPlan(**split) for name, split in value["splits"].items()},
            manifests=value["manifests"],
            input_sha256=value["input_sha256"],
            versions=value["versions"],
        )


def make(listing: Listing, picture: PictureOptions, examples_per_shard: int) -> Plan:
    """Returns the plan for a listed input.

    Raises:
        PlanError: if the options need boxes that the input lacks, or there is no picture at all.
    """
    if picture.crop == "box" and not listing.has_boxes:
        raise PlanError(
            f"--crop=box needs boxes, but the input (layout {listing.layout}) has none; "
            "add the annotation files or use --crop=none"
        )
    if not listing.images:
        raise PlanError(
            f"no picture was found, only {len(listing.missing):,} annotations without a file"
        )
    return Plan(
        picture=picture,
        layout=listing.layout,
        class_names=listing.class_names,
        has_boxes=listing.has_boxes,
        examples_per_shard=examples_per_shard,
        splits={
            row.split: SplitPlan(row.found, row.missing, -(-row.found // examples_per_shard))
            for row in listing.splits
        },
        manifests=-(-len(listing.images) // ROWS_PER_MANIFEST),
        input_sha256=_input_sha256(listing),
        versions=_versions(picture),
    )


def _versions(picture: PictureOptions) -> dict[str, str]:
    """Returns the versions of the libraries whose change can change a byte."""
    libraries = ["numpy", "pillow", "protobuf", "tensorflow-datasets"]
    if picture.colors:
        libraries.append("numba")
        if picture.quantizer == "sklearn":
            libraries.append("scikit-learn")
    return {name: version(name) for name in sorted(libraries)}


def require_versions(plan: Plan) -> None:
    """Raises `PlanError` if the libraries of this process are not those of the plan.

    A worker is installed apart from the launcher, and other versions may write other bytes.
    """
    here = _versions(plan.picture)
    other = [f"{name} {here[name]}" for name in here if here[name] != plan.versions[name]]
    if other:
        told = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
        raise PlanError(
            f"this worker has {', '.join(other)}, but the launcher has {told}; "
            "install both from the same constraints.txt"
        )


def _identity(image: CarImage) -> str:
    """Returns what makes two rows the same input: not where the data folder lies."""
    row = {key: value for key, value in image.to_json().items() if key != "path"}
    return json.dumps(row, sort_keys=True, ensure_ascii=False)


def _input_sha256(listing: Listing) -> str:
    sha256 = hashlib.sha256()
    for image in listing.images:
        sha256.update(_identity(image).encode() + b"\n")
    for line in to_jsonl(listing.missing):
        sha256.update(line.encode())
    return sha256.hexdigest()


def manifest_path(output_dir: str, index: int) -> str:
    """Returns the path of the manifest `index`, a file of rows as JSON lines."""
    return storage.join(output_dir, SIDECAR_FOLDER, f"manifest-{index:05d}.jsonl")


def read_manifest(path: str) -> Iterator[CarImage]:
    """Yields the rows of a manifest; raises `OSError`."""
    return map(CarImage.from_json, _json_lines(path))


def read_manifests(output_dir: str, plan: Plan) -> Iterator[CarImage]:
    """Yields every row of the input, sorted by id; raises `OSError`."""
    for index in range(plan.manifests):
        yield from read_manifest(manifest_path(output_dir, index))


def read_missing(output_dir: str) -> Iterator[Reject]:
    """Yields the pictures that were annotated but not found; raises `OSError`."""
    return read_rejects(storage.join(output_dir, MISSING))


def read_rejects(path: str) -> Iterator[Reject]:
    """Yields the rows of a file that `rejects.to_jsonl` made; raises `OSError`."""
    return (Reject(**row) for row in _json_lines(path))


def _json_lines(path: str) -> Iterator[dict[str, Any]]:
    # Lines of bytes: those of a text end at U+2028 and the like too, which file names may hold.
    return map(json.loads, storage.read_lines(path))


def read(output_dir: str) -> Plan | None:
    """Returns the plan that claims a folder, or None.

    Raises:
        PlanError: if `preprocessing.json` is there and cannot be understood.
        OSError: if it cannot be read, or `output_dir` is a file.
    """
    path = storage.join(output_dir, PREPROCESSING)
    try:
        return Plan.from_json(json.loads(storage.read_text(path)))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path} is not understood: {error}; choose another folder") from error


def require_claim(output_dir: str, plan: Plan) -> None:
    """Raises PlanError if another plan has taken the folder over since `claim`.

    A job may go on where nobody looks, as on Dataflow, while somebody overwrites its output.
    """
    claimed = read(output_dir)
    if claimed is None or claimed.fingerprint != plan.fingerprint:
        raise PlanError(f"{output_dir} was taken over by another run; this one stops")


def claim(options: JobOptions, plan: Plan, listing: Listing) -> None:
    """Makes `output_dir` the folder of this plan: writes the manifests and `preprocessing.json`.

    A folder that already holds the same plan is continued. `--overwrite` takes over a folder of
    another plan, removing the commit first and then only files that this program wrote.

    Raises:
        PlanError: if the folder holds another plan, or a data set of another program.
        OSError: if the folder cannot be written.
    """
    output_dir = options.output_dir
    earlier = read(output_dir)
    if earlier is None and storage.exists(storage.join(output_dir, DATASET_INFO)):
        raise PlanError(
            f"{output_dir} holds a data set that this program did not write "
            f"({DATASET_INFO} without {PREPROCESSING}); choose another folder"
        )
    if earlier is not None and earlier.fingerprint != plan.fingerprint:
        if not options.overwrite:
            difference = _difference(output_dir, earlier, plan, listing)
            raise PlanError(
                f"{output_dir} was made differently: {difference}. "
                "Use another --output_dir, or --overwrite to replace it"
            )
        _remove_output(output_dir, earlier)
    storage.make_folder(storage.join(output_dir, SIDECAR_FOLDER))
    remove_temporaries(output_dir)
    _withdraw_if_incomplete(output_dir, plan)
    _write_manifests(output_dir, plan, listing)
    storage.publish(
        storage.join(output_dir, PREPROCESSING),
        json.dumps(plan.to_json(), indent=1, ensure_ascii=False) + "\n",
    )


def _write_manifests(output_dir: str, plan: Plan, listing: Listing) -> None:
    lines = (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in listing.images)
    for index in range(plan.manifests):
        part = itertools.islice(lines, ROWS_PER_MANIFEST)
        storage.publish(manifest_path(output_dir, index), "".join(part))
    storage.publish(storage.join(output_dir, MISSING), "".join(to_jsonl(listing.missing)))


def remove_temporaries(output_dir: str) -> None:
    """Removes what killed runs left half-written in an output folder."""
    storage.remove_temporaries(output_dir)
    storage.remove_temporaries(storage.join(output_dir, SIDECAR_FOLDER))


def _withdraw_if_incomplete(output_dir: str, plan: Plan) -> None:
    # Somebody removed a shard of a finished data set: until it is made again nothing is committed.
    files = storage.list_folder(output_dir)
    if any(shard.file_name not in files for shard in plan.all_shards()):
        storage.remove([storage.join(output_dir, DATASET_INFO)])


def _remove_output(output_dir: str, plan: Plan) -> None:
    # The commit goes first: a reader must not find metadata of files that are going away.
    names = [DATASET_INFO, FEATURES, LABELS, REJECTS, REPORT_JSON, REPORT_HTML, MISSING]
    for shard in plan.all_shards():
        names += [shard.sidecar_name, shard.file_name]
    storage.remove(storage.join(output_dir, name) for name in names)
    storage.remove(manifest_path(output_dir, index) for index in range(plan.manifests))
    storage.remove([storage.join(output_dir, PREPROCESSING)])


def _difference(output_dir: str, earlier: Plan, plan: Plan, listing: Listing) -> str:
    """Returns the first differences between two plans, in the words of the options."""
    old, new = _flat(earlier), _flat(plan)
    told = [
        f"{key} was {old.get(key)}, is now {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if len(earlier.class_names) == len(plan.class_names):
        told += [
            f"class {label} was {was!r}, is now {now!r}"
            for label, (was, now) in enumerate(
                zip(earlier.class_names, plan.class_names, strict=True)
            )
            if was != now
        ][:1]
    if earlier.input_sha256 != plan.input_sha256:
        told.append(_input_difference(output_dir, earlier, listing))
    return "; ".join(told)


def _flat(plan: Plan) -> dict[str, Any]:
    return {
        **{f"--{name}": value for name, value in plan.picture.to_json().items()},
        **{f"version of {name}": value for name, value in plan.versions.items()},
        "--examples_per_shard": plan.examples_per_shard,
        "layout": plan.layout,
        "number of classes": len(plan.class_names),
        "boxes": plan.has_boxes,
    }


def _input_difference(output_dir: str, earlier: Plan, listing: Listing) -> str:
    """Returns how many pictures changed and the first of them; both inputs are sorted by id."""
    old = ((image.id, "gone", image) for image in read_manifests(output_dir, earlier))
    new = ((image.id, "added", image) for image in listing.images)
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    try:
        merged = heapq.merge(old, new, key=lambda row: row[0])
        for id, rows in itertools.groupby(merged, key=lambda row: row[0]):
            what, images = zip(*((what, image) for _, what, image in rows), strict=True)
            if len(images) == 2 and _identity(images[0]) == _identity(images[1]):
                continue
            verb = "changed" if len(images) == 2 else what[0]
            counts[verb] = counts.get(verb, 0) + 1
            first.setdefault(verb, id)
    except FileNotFoundError:  # a run that was to replace the folder was killed at that
        return "the input differs"
    parts = [
        f"{counts[verb]:,} pictures {verb} (first: {first[verb]})"
        for verb in ("changed", "gone", "added")
        if verb in counts
    ]
    return "the input differs: " + (", ".join(parts) or "other pictures are missing")
