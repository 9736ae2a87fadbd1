"""What a data folder holds: its pictures, what is missing, and what a person must know of it.

`join` matches annotated pictures to files by file name without extension, so that a copy saved as
`.png` or `.JPG` is still the annotated picture.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.annotations import Box, has_pixels
from pipeline.class_names import OFFICIAL_CLASS_NAMES
from pipeline.folders import File, LayoutError
from pipeline.rejects import MISSING, Reject

if TYPE_CHECKING:
    from rich.table import Table

SPLITS = ("train", "test", "validation")
OFFICIAL_COUNTS = {"train": 8144, "test": 8041}


@dataclasses.dataclass(frozen=True, slots=True)
class CarImage:
    """A picture to preprocess.

    Attributes:
        id: `train/00001` (devkit), `000001` (car_ims) or `train/<class folder>/00001`; unique.
        split: `train`, `test` or `validation`.
        path: full path, to be opened by Beam's FileSystems.
        relative_path: path relative to the data folder, with forward slashes.
        label: 0-based position in the class table.
        box: x1, y1, x2, y2 in 1-based inclusive pixels of the raster as stored, exactly as
            annotated (it may be impossible: that is a bad picture, found when it is decoded);
            None where the data set has no boxes.
        size: bytes.
        modified: time of the last change, seconds since 1970; 0.0 where unknown.
    """

    id: str
    split: str
    path: str
    relative_path: str
    label: int
    box: Box | None
    size: int
    modified: float

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; choose one of {', '.join(SPLITS)}")
        if self.label < 0:
            raise ValueError(f"label is {self.label}; labels start at 0")

    @classmethod
    def of_file(cls, file: File, id: str, split: str, label: int, box: Box | None) -> "CarImage":
        """Returns the picture in a listed file."""
        return cls(id, split, file.path, file.relative_path, label, box, file.size, file.modified)

    def to_json(self) -> dict[str, Any]:
        """Returns the picture as a JSON object, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CarImage":
        """Returns the picture written by `to_json`."""
        box = value["box"]
        return cls(**{**value, "box": None if box is None else tuple(box)})


@dataclasses.dataclass(frozen=True, slots=True)
class SplitCount:
    """Pictures of one split.

    Attributes:
        split: name of the split.
        found: pictures to preprocess.
        missing: annotated pictures without a file.
        annotated: rows of the annotation file; None where there is none.
        official: pictures of the official split; None for another data set.
    """

    split: str
    found: int
    missing: int
    annotated: int | None
    official: int | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a data folder holds.

    Attributes:
        layout: a name of `pipeline.layouts.LAYOUTS`.
        class_names: the class table; labels are positions in it.
        images: the pictures, by split (train, test, validation) and id.
        missing: annotated pictures without a file, sorted by id.
        splits: the counts, train first; a split left out has no entry.
        notes: what a person must know, a sentence or two each.
    """

    layout: str
    class_names: tuple[str, ...]
    images: tuple[CarImage, ...]
    missing: tuple[Reject, ...]
    splits: tuple[SplitCount, ...]
    notes: tuple[str, ...]

    @property
    def has_boxes(self) -> bool:
        """Whether every picture has a box; otherwise none has."""
        return all(image.box is not None for image in self.images)

    @property
    def missing_by_split(self) -> dict[str, int]:
        """Number of annotated pictures without a file, for each split."""
        return {row.split: row.missing for row in self.splits}


@dataclasses.dataclass(frozen=True, slots=True)
class Expected:
    """An annotated picture whose file is still to be found.

    Attributes:
        id: id of the picture.
        split: its split.
        stem: its file name without extension.
        label: 0-based position in the class table.
        box: the box, as annotated.
        path: where the file is expected, relative to the data folder.
        source: relative path of the annotation file.
        folder: name of the class folder it must lie in; None if it may lie in any.
    """

    id: str
    split: str
    stem: str
    label: int
    box: Box
    path: str
    source: str
    folder: str | None = None


@dataclasses.dataclass(frozen=True)
class Joined:
    """Annotated pictures with their files.

    Attributes:
        images: those whose file is there.
        missing: those whose file is not there, by split.
        unused: files without annotation.
    """

    images: list[CarImage]
    missing: dict[str, list[Reject]]
    unused: list[File]


def join(expected: Iterable[Expected], files: Mapping[str, Sequence[File]]) -> Joined:
    """Finds the file of each annotated picture.

    Args:
        expected: the annotated pictures.
        files: the picture files in which to look, by split.

    Returns:
        The pictures with their files, in the order of `expected`.

    Raises:
        LayoutError: if two rows or two files are for one picture, or if a file lies in the folder
            of another class than annotated.
    """
    by_stem: dict[tuple[str, str], list[File]] = collections.defaultdict(list)
    for split, group in files.items():
        for file in group:
            by_stem[split, file.stem].append(file)
    joined = Joined([], collections.defaultdict(list), [])
    seen: set[tuple[str, str]] = set()
    for row in expected:
        key = row.split, row.stem
        if key in seen:
            raise LayoutError(f"{row.source} has two rows for {row.stem}; remove the wrong one")
        seen.add(key)
        match by_stem.get(key, []):
            case []:
                detail = f"{row.source} names it in the {row.split} split; there is no such file"
                joined.missing[row.split].append(Reject(row.id, row.path, MISSING, detail))
            case [file]:
                if row.folder is not None and row.folder != file.folders[-1]:
                    raise LayoutError(
                        f"{file.relative_path} lies in the folder of {file.folders[-1]!r}, but "
                        f"{row.source} says it is of class {row.folder!r}; mend one of them"
                    )
                joined.images.append(CarImage.of_file(file, row.id, row.split, row.label, row.box))
            case [first, second, *_]:
                raise two_pictures(row.id, first.relative_path, second.relative_path)
    joined.unused.extend(
        file for key, group in by_stem.items() if key not in seen for file in group
    )
    return joined


def two_pictures(id: str, first: str, second: str) -> LayoutError:
    """Returns the error for two files that would be one picture."""
    return LayoutError(f"two pictures have the id {id}: {first} and {second}; remove or rename one")


def notes_on(joined: Joined) -> list[str]:
    """Returns what a person must know of a join: what is left out, missing or impossible."""
    notes = []
    annotated = collections.Counter(image.split for image in joined.images)
    for split, rows in joined.missing.items():
        if not annotated[split]:
            notes.append(
                f"None of the {len(rows):,} annotated pictures of the {split} split is there; "
                f"looked for {rows[0].path} and so on. To leave the split out, take its annotation "
                "file away."
            )
    notes += note_on_unused(joined.unused, "without annotation")
    bad = [image for image in joined.images if image.box and not has_pixels(image.box)]
    if bad:
        notes.append(
            f"{len(bad):,} boxes hold no pixel, such as {bad[0].box} of {bad[0].id}; those "
            "pictures will be rejected."
        )
    return notes


def note_on_unused(files: Sequence[File], why: str) -> list[str]:
    """Returns a note on pictures left out, or none if there are none."""
    if not files:
        return []
    return [f"{len(files):,} pictures {why} are left out, such as {files[0].relative_path}."]


def count(
    images: Iterable[CarImage],
    missing: Mapping[str, Sequence[Reject]],
    class_names: tuple[str, ...],
    is_annotated: bool,
) -> tuple[SplitCount, ...]:
    """Returns the counts of each split that has a picture, found or missing.

    Args:
        images: pictures found.
        missing: pictures missing, by split.
        class_names: the class table; the official one brings the official counts.
        is_annotated: whether there are annotation files.

    Returns:
        A row a split, in the order of `SPLITS`.
    """
    found = collections.Counter(image.split for image in images)
    official = OFFICIAL_COUNTS if class_names == OFFICIAL_CLASS_NAMES else {}
    rows = []
    for split in SPLITS:
        lacking = len(missing.get(split, ()))
        if found[split] or lacking:
            annotated = found[split] + lacking if is_annotated else None
            rows.append(SplitCount(split, found[split], lacking, annotated, official.get(split)))
    return tuple(rows)


def table(listing: Listing) -> "Table":
    """Returns the short table of what was found, to print before the work."""
    from rich.table import Table

    classes = f"{len(listing.class_names)} classes"
    boxes = "with boxes" if listing.has_boxes else "no boxes"
    result = Table(title=f"{listing.layout}: {classes}, {boxes}")
    result.add_column("split")
    for heading in ("found", "missing", "annotated", "official"):
        result.add_column(heading, justify="right")
    for row in listing.splits:
        counts = (row.found, row.missing, row.annotated, row.official)
        result.add_row(row.split, *("–" if n is None else f"{n:,}" for n in counts))
    return result
