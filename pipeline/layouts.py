"""Find and validate the input: which layout a folder has, its pictures, labels and boxes.

Three layouts are known (`LAYOUTS`):

* `devkit`: pictures below `cars_train` and `cars_test`, annotations in `cars_train_annos.mat`
  and `cars_test_annos_withlabels.mat`, class names in `cars_meta.mat`.
* `car_ims`: pictures below `car_ims`, annotations and class names in `cars_annos.mat`.
* `class_folders`: `train/<class>/*.jpg`, likewise `test` and one of `val`, `valid`, `validation`;
  boxes from `anno_train.csv`, `anno_test.csv` and `names.csv` where they are there.

The files may lie at any depth: annotation files are known by their names, pictures by the folder
they are in, so that `devkit/`, `cars_train/cars_train/` and `car_data/car_data/` need no rule of
their own. Pictures are joined to annotations by file name without extension.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import annotations, folders
from pipeline.annotations import Annotation, Box
from pipeline.class_names import OFFICIAL_CLASS_NAMES
from pipeline.folders import File, LayoutError
from pipeline.rejects import MISSING, Reject

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LAYOUTS", "CarImage", "LayoutError", "Listing", "SplitCount", "find", "table"]

LAYOUTS = ("devkit", "car_ims", "class_folders")
SPLITS = ("train", "test", "validation")
OFFICIAL_COUNTS = {"train": 8144, "test": 8041}
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp"})

_SPLIT_OF_FOLDER = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_OFFICIAL_FOLDERS = {"cars_train": "train", "cars_test": "test", "car_ims": "car_ims"}
_WITH_LABELS = "cars_test_annos_withlabels.mat"
# Browsers number a second download: the copy most people were pointed to ends in " (1).mat".
_DOWNLOAD_NUMBER = re.compile(r" ?\(\d+\)(?=\.\w+$)")
_LOOKED_FOR = (
    "looked for cars_train/*.jpg with cars_train_annos.mat (devkit), car_ims/*.jpg with "
    "cars_annos.mat (car_ims), and train|test|validation/<class>/*.jpg (class_folders)"
)


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
            raise ValueError(f"split is {self.split!r}, not one of {', '.join(SPLITS)}")
        if self.label < 0:
            raise ValueError(f"label is {self.label}; labels start at 0")

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
        layout: a name of `LAYOUTS`.
        class_names: the class table; labels are positions in it.
        images: the pictures, by split (train, test, validation) and id.
        missing_by_split: annotated pictures without a file, by split, each sorted by id.
        has_boxes: whether every picture has a box; otherwise none has.
        notes: what a person must know, a sentence each.
        splits: the counts, train first; a split left out has no entry.
    """

    layout: str
    class_names: tuple[str, ...]
    images: tuple[CarImage, ...]
    missing_by_split: Mapping[str, tuple[Reject, ...]]
    has_boxes: bool
    notes: tuple[str, ...]
    splits: tuple[SplitCount, ...]

    @property
    def missing(self) -> tuple[Reject, ...]:
        """All annotated pictures without a file, sorted by id."""
        return tuple(sorted(row for rows in self.missing_by_split.values() for row in rows))

    @property
    def is_official(self) -> bool:
        """Whether the class table is that of Stanford Cars."""
        return self.class_names == OFFICIAL_CLASS_NAMES


@dataclasses.dataclass(frozen=True, slots=True)
class _Expected:
    """An annotated picture, before its file is looked up by `key`."""

    id: str
    split: str
    key: tuple[str, str]  # (split or car_ims, file name without extension)
    label: int
    box: Box
    path: str  # where the file is expected, relative to the data folder
    source: str  # annotation file


@dataclasses.dataclass(frozen=True)
class _Contents:
    """The files of a data folder, sorted by what they can be.

    Attributes:
        data_dir: the folder, as the user gave it.
        official: pictures below `cars_train`, `cars_test` and `car_ims`, by split or `car_ims`.
        in_classes: pictures at `<root>/<split>/<class>/`, by root.
        elsewhere: all other pictures.
        annotation_files: `.mat` and `.csv` files by name.
    """

    data_dir: str
    official: Mapping[str, Sequence[File]]
    in_classes: Mapping[str, Sequence[File]]
    elsewhere: Sequence[File]
    annotation_files: Mapping[str, Sequence[File]]

    @property
    def in_split_folders(self) -> list[File]:
        """Pictures below `cars_train` and `cars_test`."""
        return [*self.official.get("train", ()), *self.official.get("test", ())]

    @property
    def pictures(self) -> list[File]:
        """All pictures."""
        groups = (*self.official.values(), *self.in_classes.values(), self.elsewhere)
        return [file for group in groups for file in group]

    def annotation_file(self, name: str) -> File | None:
        """Returns the annotation file of this name, the outermost of equal copies, or None.

        Raises:
            LayoutError: if there are several that differ.
        """
        files = sorted(self.annotation_files.get(name, ()), key=lambda f: (len(f.folders), f.path))
        if len(files) > 1:
            first = folders.read(files[0])
            for other in files[1:]:
                if other.size != files[0].size or folders.read(other) != first:
                    raise LayoutError(
                        f"{files[0].relative_path} and {other.relative_path} in {self.data_dir} "
                        "differ; remove the wrong one"
                    )
        return files[0] if files else None


def find(data_dir: str, layout: str = "auto") -> Listing:
    """Finds the pictures of a data folder, with their labels and boxes, and validates them.

    The folder is listed once and only annotation files are read. A class table of folders whose
    names are all official ones (`/` spelled `-`) is the official table of 196, so that a subset
    keeps the labels of the whole; other folders are sorted by code point, or stand as `names.csv`
    says where it is used.

    Args:
        data_dir: the folder; local or on any file system that Beam reads.
        layout: a name of `LAYOUTS`, or `auto` for the only one that fits.

    Returns:
        The listing; it has at least one picture.

    Raises:
        LayoutError: if the layout is not recognised, if several are, or if an annotation file or
            a name is not what it must be.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise LayoutError(f"--layout is {layout!r}; choose auto, {', '.join(LAYOUTS)}")
    contents = _sort_files(data_dir)
    readers: dict[str, Callable[[_Contents], Listing]] = {
        "devkit": _read_devkit,
        "car_ims": _read_car_ims,
        "class_folders": _read_class_folders,
    }
    return readers[_detect(contents) if layout == "auto" else layout](contents)


def table(listing: Listing) -> "Table":
    """Returns the short table of what was found, to print before the work."""
    from rich.table import Table

    boxes = "with boxes" if listing.has_boxes else "without boxes"
    classes = f"{len(listing.class_names)} classes"
    result = Table(title=f"Input: {listing.layout} layout, {classes}, {boxes}")
    result.add_column("split")
    for heading in ("found", "missing", "annotated", "official"):
        result.add_column(heading, justify="right")
    for row in listing.splits:
        counts = (row.found, row.missing, row.annotated, row.official)
        result.add_row(row.split, *("–" if n is None else f"{n:,}" for n in counts))
    return result


def _sort_files(data_dir: str) -> _Contents:
    files = folders.list_files(data_dir, IMAGE_EXTENSIONS | {".mat", ".csv"})
    official: dict[str, list[File]] = collections.defaultdict(list)
    in_classes: dict[str, list[File]] = collections.defaultdict(list)
    annotation_files: dict[str, list[File]] = collections.defaultdict(list)
    elsewhere: list[File] = []
    for file in files:
        if file.extension not in IMAGE_EXTENSIONS:
            annotation_files[_DOWNLOAD_NUMBER.sub("", file.name)].append(file)
            continue
        above = file.folders
        innermost = next((name for name in reversed(above) if name in _OFFICIAL_FOLDERS), None)
        if innermost is not None:
            official[_OFFICIAL_FOLDERS[innermost]].append(file)
        elif len(above) > 1 and above[-2].lower() in _SPLIT_OF_FOLDER:
            in_classes["/".join(above[:-2])].append(file)
        else:
            elsewhere.append(file)
    return _Contents(data_dir, official, in_classes, elsewhere, annotation_files)


def _detect(contents: _Contents) -> str:
    there = contents.annotation_files
    has_split_annotations = bool(
        {"cars_train_annos.mat", _WITH_LABELS, "cars_test_annos.mat"} & there.keys()
    )
    found = []
    if contents.in_split_folders and has_split_annotations:
        found.append("devkit")
    if contents.official.get("car_ims") and "cars_annos.mat" in there:
        found.append("car_ims")
    if contents.in_classes:
        found.append("class_folders")
    if len(found) > 1:
        raise LayoutError(
            f"{contents.data_dir} holds several data sets: {', '.join(found)}; "
            f"choose one by --layout={found[0]}, or give its own folder"
        )
    if not found:
        _refuse_other_numbering(contents)
        raise _nothing_found(contents, f"no known layout in {contents.data_dir}; {_LOOKED_FOR}")
    return found[0]


def _nothing_found(contents: _Contents, problem: str) -> LayoutError:
    pictures = contents.pictures
    known = [f for files in contents.annotation_files.values() for f in files]
    first = f", the first is {pictures[0].relative_path}" if pictures else ""
    names = ", ".join(sorted(file.relative_path for file in known)[:5]) or "none"
    return LayoutError(
        f"{problem}.\nFound {len(pictures):,} pictures{first}; .mat and .csv files: {names}."
    )


def _refuse_other_numbering(contents: _Contents) -> None:
    """Raises if pictures of the split numbering lie beside annotations of the other one only."""
    if contents.in_split_folders and "cars_annos.mat" in contents.annotation_files:
        raise LayoutError(
            f"{contents.annotation_files['cars_annos.mat'][0].relative_path} does not belong to "
            "the pictures in cars_train/ and cars_test/: it numbers those of car_ims/, and would "
            "label them wrongly.\nAdd cars_meta.mat, cars_train_annos.mat and "
            f"{_WITH_LABELS} to {contents.data_dir}."
        )


def _read_devkit(contents: _Contents) -> Listing:
    if not contents.in_split_folders:
        raise _nothing_found(
            contents,
            f"no picture in {contents.data_dir} for the devkit layout; looked for "
            "cars_train/*.jpg and cars_test/*.jpg",
        )
    files = {
        "train": contents.annotation_file("cars_train_annos.mat"),
        # Some people have put the labelled file in the place of the other.
        "test": contents.annotation_file(_WITH_LABELS)
        or contents.annotation_file("cars_test_annos.mat"),
    }
    if files["train"] is None:
        _refuse_other_numbering(contents)
    class_names = _devkit_class_names(contents)
    notes: list[str] = []
    expected: list[_Expected] = []
    annotated: dict[str, int] = {}
    for split, file in files.items():
        rows = None if file is None else annotations.read_split_mat(file, len(class_names))
        if file is None or rows is None:
            bringer = _WITH_LABELS if split == "test" else "cars_train_annos.mat"
            left_out = len(contents.official.get(split, ()))
            notes.append(
                f"The {split} split is left out ({left_out:,} pictures in cars_{split}/): there "
                f"are no labels for it. {bringer} in {contents.data_dir} would bring it."
            )
            continue
        annotated[split] = len(rows)
        folder = _common_folder(contents.official.get(split, ()), f"cars_{split}")
        expected += [
            _Expected(
                id=f"{split}/{_stem(row)}",
                split=split,
                key=(split, _stem(row)),
                label=row.label,
                box=row.box,
                path=f"{folder}/{row.name}",
                source=file.relative_path,
            )
            for row in rows
        ]
    pictures = {split: contents.official.get(split, ()) for split in annotated}
    return _join("devkit", contents, class_names, expected, pictures, annotated, notes)


def _devkit_class_names(contents: _Contents) -> tuple[str, ...]:
    file = contents.annotation_file("cars_meta.mat")
    if file is None:
        raise LayoutError(
            f"no class names: looked for cars_meta.mat, part of the devkit, in {contents.data_dir}"
        )
    return annotations.read_mat_class_names(file)


def _read_car_ims(contents: _Contents) -> Listing:
    pictures = contents.official.get("car_ims", ())
    file = contents.annotation_file("cars_annos.mat")
    if not pictures or file is None:
        _refuse_other_numbering(contents)
        raise _nothing_found(
            contents,
            f"no car_ims layout in {contents.data_dir}; looked for car_ims/*.jpg and "
            "cars_annos.mat",
        )
    class_names = annotations.read_mat_class_names(file)
    rows = annotations.read_car_ims_mat(file, len(class_names))
    folder = _common_folder(pictures, "car_ims")
    expected = [
        _Expected(
            id=_stem(row),
            split="test" if row.is_test else "train",
            key=("car_ims", _stem(row)),
            label=row.label,
            box=row.box,
            path=f"{folder}/{row.name}",
            source=file.relative_path,
        )
        for row in rows
    ]
    annotated = dict(collections.Counter(row.split for row in expected))
    return _join("car_ims", contents, class_names, expected, {"car_ims": pictures}, annotated, [])


def _read_class_folders(contents: _Contents) -> Listing:
    pictures = _by_split(contents)
    names = sorted({file.folders[-1] for files in pictures.values() for file in files})
    annotations.check_class_names(names, contents.data_dir)
    official = {_folder_name(name): name for name in OFFICIAL_CLASS_NAMES}
    csv_files = {split: contents.annotation_file(f"anno_{split}.csv") for split in pictures}
    notes = [
        f"There is no {split} split: no picture at {split}/<class>/ in {contents.data_dir}."
        for split in ("train", "test")
        if split not in pictures
    ]
    without = [f"anno_{split}.csv" for split, file in csv_files.items() if file is None]
    has_boxes = not without
    if without and len(without) < len(csv_files):
        notes.append(f"Boxes are left out: {', '.join(without)} not found.")
    names_file = contents.annotation_file("names.csv") if has_boxes else None
    if names_file is not None:
        class_names = annotations.read_names_csv(names_file)
    elif set(names) <= official.keys():
        class_names = OFFICIAL_CLASS_NAMES
    elif has_boxes:
        raise LayoutError(
            f"names.csv not found in {contents.data_dir}; the class numbers of "
            f"{', '.join(f.relative_path for f in csv_files.values() if f)} need it"
        )
    else:
        class_names = tuple(names)
    labels = {_folder_name(name): label for label, name in enumerate(class_names)}
    for name in names:
        if name not in labels and names_file is not None:
            raise LayoutError(
                f"the class folder {name!r} is not a name of {names_file.relative_path}"
            )
    if class_names == OFFICIAL_CLASS_NAMES and len(names) < len(class_names):
        notes.append(
            f"There are pictures of {len(names)} classes only, all of them official ones; labels "
            f"are those of the official table of {len(class_names)}."
        )
    if not has_boxes:
        return _list_class_folders(contents, class_names, labels, pictures, notes)

    expected = []
    annotated = {}
    for split, file in csv_files.items():
        assert file is not None
        rows = annotations.read_csv(file, len(class_names))
        annotated[split] = len(rows)
        folder = "/".join(pictures[split][0].folders[:-1])
        for row in rows:
            class_folder = _folder_name(class_names[row.label])
            expected.append(
                _Expected(
                    id=f"{split}/{class_folder}/{_stem(row)}",
                    split=split,
                    key=(split, _stem(row)),
                    label=row.label,
                    box=row.box,
                    path=f"{folder}/{class_folder}/{row.name}",
                    source=file.relative_path,
                )
            )
    return _join("class_folders", contents, class_names, expected, pictures, annotated, notes)


def _by_split(contents: _Contents) -> dict[str, list[File]]:
    """Returns the pictures in class folders by split, in the order of SPLITS."""
    roots = sorted(contents.in_classes)
    if not roots:
        raise _nothing_found(
            contents,
            f"no class folders in {contents.data_dir}; looked for "
            "train|test|val|valid|validation/<class>/*.jpg",
        )
    if len(roots) > 1:
        raise LayoutError(
            f"{contents.data_dir} holds several sets of class folders: "
            f"{', '.join(root or '.' for root in roots)}; give one of them as --data_dir"
        )
    split_folders: dict[str, str] = {}
    pictures: dict[str, list[File]] = {}
    for file in contents.in_classes[roots[0]]:
        folder = file.folders[-2]
        split = _SPLIT_OF_FOLDER[folder.lower()]
        if split_folders.setdefault(split, folder) != folder:
            raise LayoutError(
                f"{split_folders[split]}/ and {folder}/ in {contents.data_dir} are both the "
                f"{split} split; keep one"
            )
        pictures.setdefault(split, []).append(file)
    return {split: pictures[split] for split in SPLITS if split in pictures}


def _list_class_folders(
    contents: _Contents,
    class_names: tuple[str, ...],
    labels: Mapping[str, int],
    pictures: Mapping[str, Sequence[File]],
    notes: list[str],
) -> Listing:
    """Returns the listing of class folders without annotation files."""
    images: dict[str, CarImage] = {}
    for split, files in pictures.items():
        for file in files:
            folder = file.folders[-1]
            image = _car_image(
                f"{split}/{folder}/{file.stem}", split, file, labels[folder], box=None
            )
            if image.id in images:
                raise _two_pictures(image.id, images[image.id].relative_path, file.relative_path)
            images[image.id] = image
    return _listing("class_folders", contents, class_names, images.values(), [], {}, notes)


def _join(
    layout: str,
    contents: _Contents,
    class_names: tuple[str, ...],
    expected: Iterable[_Expected],
    pictures: Mapping[str, Sequence[File]],
    annotated: Mapping[str, int],
    notes: list[str],
) -> Listing:
    """Joins annotated pictures to files.

    Args:
        layout: name of the layout.
        contents: the data folder.
        class_names: the class table.
        expected: the annotated pictures.
        pictures: the files, by the first part of the key.
        annotated: number of rows by split.
        notes: notes so far.

    Returns:
        The listing.

    Raises:
        LayoutError: if two rows or two files are for one picture, if no picture is annotated, or
            if a class folder contradicts the annotation.
    """
    files: dict[tuple[str, str], list[File]] = collections.defaultdict(list)
    for first, group in pictures.items():
        for file in group:
            files[first, file.stem].append(file)
    images: list[CarImage] = []
    missing: dict[str, list[Reject]] = {split: [] for split in annotated}
    seen: set[tuple[str, str]] = set()
    source = ""
    for row in expected:
        source = row.source
        if row.key in seen:
            raise LayoutError(f"{row.source} has two rows for {row.path}; remove one")
        seen.add(row.key)
        candidates = files.get(row.key, ())
        if len(candidates) > 1:
            raise _two_pictures(row.id, *(file.relative_path for file in candidates[:2]))
        if not candidates:
            detail = f"named in {row.source}, but there is no such file"
            missing[row.split].append(Reject(row.id, row.path, MISSING, detail))
            continue
        (file,) = candidates
        if layout == "class_folders" and file.folders[-1] != _folder_name(class_names[row.label]):
            raise LayoutError(
                f"{file.relative_path} lies in the folder of class {file.folders[-1]!r}, but "
                f"{row.source} says {class_names[row.label]!r}; which is right?"
            )
        images.append(_car_image(row.id, row.split, file, row.label, row.box))
    if not images:
        raise _nothing_found(contents, f"no picture in {contents.data_dir} is named in {source}")
    for split, count in annotated.items():
        if count and len(missing[split]) == count:
            notes.append(
                f"None of the {count:,} annotated pictures of the {split} split is there: looked "
                f"for {missing[split][0].path} and so on."
            )
    unused = [file for key, group in files.items() if key not in seen for file in group]
    notes += _note_of_unused(unused, "without annotation", source)
    bad = [image for image in images if image.box and not annotations.is_possible(image.box)]
    if bad:
        notes.append(
            f"{len(bad):,} boxes are impossible in any picture, such as {bad[0].box} of "
            f"{bad[0].id}."
        )
    rejects = [(split, row) for split, rows in missing.items() for row in rows]
    return _listing(layout, contents, class_names, images, rejects, annotated, notes)


def _listing(
    layout: str,
    contents: _Contents,
    class_names: tuple[str, ...],
    images: Iterable[CarImage],
    missing: Iterable[tuple[str, Reject]],
    annotated: Mapping[str, int],
    notes: list[str],
) -> Listing:
    ordered = tuple(sorted(images, key=lambda image: (SPLITS.index(image.split), image.id)))
    by_split: dict[str, list[Reject]] = collections.defaultdict(list)
    for split, row in missing:
        by_split[split].append(row)
    found = collections.Counter(image.split for image in ordered)
    official = OFFICIAL_COUNTS if class_names == OFFICIAL_CLASS_NAMES else {}
    return Listing(
        layout=layout,
        class_names=class_names,
        images=ordered,
        missing_by_split={split: tuple(sorted(rows)) for split, rows in by_split.items()},
        has_boxes=ordered[0].box is not None,
        notes=(*notes, *_note_of_unused(contents.elsewhere, f"outside the {layout} layout")),
        splits=tuple(
            SplitCount(
                split=split,
                found=found[split],
                missing=len(by_split[split]),
                annotated=annotated.get(split),
                official=official.get(split),
            )
            for split in SPLITS
            if found[split] or split in annotated
        ),
    )


def _car_image(id: str, split: str, file: File, label: int, box: Box | None) -> CarImage:
    return CarImage(id, split, file.path, file.relative_path, label, box, file.size, file.modified)


def _note_of_unused(files: Sequence[File], why: str, source: str = "") -> list[str]:
    if not files:
        return []
    where = f" in {source}" if source else ""
    return [f"{len(files):,} pictures {why}{where} are left out, such as {files[0].relative_path}."]


def _two_pictures(id: str, first: str, second: str) -> LayoutError:
    return LayoutError(f"two pictures have the id {id}: {first} and {second}; remove one")


def _folder_name(class_name: str) -> str:
    """Returns the folder of a class: a slash cannot stand in the name of a folder."""
    return class_name.replace("/", "-")


def _stem(row: Annotation) -> str:
    return row.name.rpartition(".")[0] or row.name


def _common_folder(files: Sequence[File], otherwise: str) -> str:
    """Returns the folder of most files, where missing ones would be looked for."""
    counts = collections.Counter("/".join(file.folders) for file in files)
    return counts.most_common(1)[0][0] if counts else otherwise
