"""What a data folder holds: its pictures, what is missing, and what a person must know of it.

`join` matches annotated pictures to files by file name without extension, so that a copy saved as
`.png` or `.JPG` is still the annotated picture.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.annotations import Box, has_pixels
from pipeline.class_names import OFFICIAL_CLASS_NAMES
from pipeline.folders import File, LayoutError
from pipeline.rejects import MISSING, Reject
from pipeline.spool import Sorter

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
        # Not dataclasses.asdict, which copies each value, in 15 times the time.
        return {name: getattr(self, name) for name in self.__slots__}

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
        images: the pictures, sorted by id; of a large set they are rows on disk.
        missing: annotated pictures without a file, sorted by id.
        splits: the counts, train first; a split left out has no entry.
        notes: what a person must know, a sentence or two each.
    """

    layout: str
    class_names: tuple[str, ...]
    images: Sequence[CarImage]
    missing: tuple[Reject, ...]
    splits: tuple[SplitCount, ...]
    notes: tuple[str, ...]

    @property
    def has_boxes(self) -> bool:
        """Whether every picture has a box; otherwise none has."""
        return not self.images or self.images[0].box is not None

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
        unused: number of files without annotation.
        first_unused: one of them.
    """

    images: list[CarImage]
    missing: dict[str, list[Reject]]
    unused: int
    first_unused: File | None


def join(expected: Iterable[Expected], files: Mapping[str, Iterable[File]]) -> Joined:
    """Finds the file of each annotated picture.

    The rows are held in memory, as annotation files can only be read whole; the files are not.

    Args:
        expected: the annotated pictures.
        files: the picture files in which to look, by split.

    Returns:
        The pictures with their files, in the order of `expected`.

    Raises:
        LayoutError: if two rows or two files are for one picture, or if a file lies in the folder
            of another class than annotated.
    """
    rows: dict[tuple[str, str], Expected] = {}
    for row in expected:
        if rows.setdefault((row.split, row.stem), row) is not row:
            raise LayoutError(f"{row.source} has two rows for {row.stem}; remove the wrong one")
    found: dict[tuple[str, str], File] = {}
    unused, first_unused = 0, None
    for split, group in files.items():
        for file in group:
            key = split, file.stem
            if key not in rows:
                unused, first_unused = unused + 1, first_unused or file
            elif key in found:
                raise two_pictures(rows[key].id, found[key].relative_path, file.relative_path)
            else:
                found[key] = file
    joined = Joined([], collections.defaultdict(list), unused, first_unused)
    for key, row in rows.items():
        if (there := found.get(key)) is None:
            detail = f"{row.source} names it in the {row.split} split; there is no such file"
            joined.missing[row.split].append(Reject(row.id, row.path, MISSING, detail))
            continue
        if row.folder is not None and row.folder != there.folders[-1]:
            raise LayoutError(
                f"{there.relative_path} lies in the folder of {there.folders[-1]!r}, but "
                f"{row.source} says it is of class {row.folder!r}; mend one of them"
            )
        joined.images.append(CarImage.of_file(there, row.id, row.split, row.label, row.box))
    return joined


def sort_by_id(images: Iterable[CarImage]) -> Sequence[CarImage]:
    """Returns the pictures sorted by id, on disk.

    Raises:
        LayoutError: if two have the same id.
    """
    sorter = Sorter(columns=8, by=2)
    sorter.extend(
        (i.id, i.relative_path, i.split, i.path, i.label, json.dumps(i.box), i.size, i.modified)
        for i in images
    )
    rows = sorter.sorted(_image)
    for one, two in itertools.pairwise(rows):
        if one.id == two.id:
            raise two_pictures(one.id, one.relative_path, two.relative_path)
    return rows


def _image(
    id: str,
    relative_path: str,
    split: str,
    path: str,
    label: int,
    box: str,  # JSON, because an annotated number may be too large for a column
    size: int,
    modified: float,
) -> CarImage:
    numbers = None if box == "null" else tuple(json.loads(box))
    return CarImage(id, split, path, relative_path, label, numbers, size, modified)


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
    notes += note_on_unused(joined.unused, joined.first_unused, "without annotation")
    bad = [image for image in joined.images if image.box and not has_pixels(image.box)]
    if bad:
        notes.append(
            f"{len(bad):,} boxes hold no pixel, such as {bad[0].box} of {bad[0].id}; those "
            "pictures will be rejected."
        )
    return notes


def note_on_unused(files: int, first: File | None, why: str) -> list[str]:
    """Returns a note on pictures left out, or none if there are none."""
    if first is None:
        return []
    return [f"{files:,} pictures {why} are left out, such as {first.relative_path}."]


def count(
    found: Mapping[str, int],
    missing: Mapping[str, Sequence[Reject]],
    class_names: tuple[str, ...],
    is_annotated: bool,
) -> tuple[SplitCount, ...]:
    """Returns the counts of each split that has a picture, found or missing.

    Args:
        found: number of pictures found, by split.
        missing: pictures missing, by split.
        class_names: the class table; the official one brings the official counts.
        is_annotated: whether there are annotation files.

    Returns:
        A row a split, in the order of `SPLITS`.
    """
    official = OFFICIAL_COUNTS if class_names == OFFICIAL_CLASS_NAMES else {}
    rows = []
    for split in SPLITS:
        lacking = len(missing.get(split, ()))
        there = found.get(split, 0)
        if there or lacking:
            annotated = there + lacking if is_annotated else None
            rows.append(SplitCount(split, there, lacking, annotated, official.get(split)))
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
