"""Find and validate the input: which layout a folder has, its pictures, labels and boxes.

Three layouts are known (`LAYOUTS`):

* `devkit`: pictures below `cars_train` and `cars_test`, annotations in `cars_train_annos.mat`
  and `cars_test_annos_withlabels.mat`, class names in `cars_meta.mat`.
* `car_ims`: pictures below `car_ims`, annotations and class names in `cars_annos.mat`.
* `class_folders`: `train/<class>/*.jpg`, likewise `test` and one of `val`, `valid`, `validation`;
  boxes from `anno_train.csv`, `anno_test.csv` and `names.csv` where they are there.

The files may lie at any depth: annotation files are known by their names, pictures by the folder
they are in, so that `devkit/`, `cars_train/cars_train/` and `car_data/car_data/` need no rule of
their own.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pipeline import annotations
from pipeline.annotations import Annotation
from pipeline.class_names import OFFICIAL_CLASS_NAMES
from pipeline.folders import (
    IMAGE_EXTENSIONS,
    SPLIT_OF_FOLDER,
    Contents,
    File,
    LayoutError,
    extension,
)
from pipeline.listing import (
    OFFICIAL_COUNTS,
    SPLITS,
    CarImage,
    Expected,
    Joined,
    Listing,
    SplitCount,
    count,
    join,
    note_on_unused,
    notes_on,
    sort_by_id,
    table,
)
from pipeline.rejects import Reject

__all__ = ["LAYOUTS", "CarImage", "LayoutError", "Listing", "SplitCount", "find", "table"]

LAYOUTS = ("devkit", "car_ims", "class_folders")

_CARS_META = "cars_meta.mat"
_CARS_ANNOS = "cars_annos.mat"
_TRAIN_ANNOS = "cars_train_annos.mat"
_TEST_ANNOS = "cars_test_annos.mat"
_LABELED_TEST_ANNOS = "cars_test_annos_withlabels.mat"
_NAMES_CSV = "names.csv"

_LOOKED_FOR = {
    "devkit": f"cars_train/*.jpg with {_TRAIN_ANNOS} and {_CARS_META}, "
    f"cars_test/*.jpg with {_LABELED_TEST_ANNOS}",
    "car_ims": f"car_ims/*.jpg with {_CARS_ANNOS}",
    "class_folders": "train|test|val|valid|validation/<class>/*.jpg",
}


def find(data_dir: str, layout: str = "auto") -> Listing:
    """Finds the pictures of a data folder, with their labels and boxes, and validates them.

    The folder is listed once and only annotation files are read. A class table of folders whose
    names are all official ones (`/` spelled `-`) is the official table of 196, so that a subset
    keeps the labels of the whole; the order of other folders is that of `names.csv` where it is
    used, and else that of code points.

    Args:
        data_dir: the folder; local or on any file system that Beam reads.
        layout: a name of `LAYOUTS`, or `auto` for the only one that fits.

    Returns:
        The listing; it has at least one picture.

    Raises:
        LayoutError: if no layout fits or several do, or if an annotation file or a name is not
            what it must be or cannot be read.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise LayoutError(f"--layout is {layout!r}; choose one of auto, {', '.join(LAYOUTS)}")
    return of_contents(Contents.of_folder(data_dir), layout)


def of_contents(contents: Contents, layout: str = "auto") -> Listing:
    """Returns the listing of a folder whose files are known; see `find`."""
    chosen = _detect(contents) if layout == "auto" else layout
    return _READERS[chosen](contents)


def _detect(contents: Contents) -> str:
    there = contents.annotation_files
    fits = {
        "devkit": contents.devkit and {_TRAIN_ANNOS, _TEST_ANNOS, _LABELED_TEST_ANNOS} & set(there),
        "car_ims": contents.car_ims and _CARS_ANNOS in there,
        "class_folders": contents.class_folders,
    }
    found = [layout for layout in LAYOUTS if fits[layout]]
    if len(found) > 1:
        raise LayoutError(
            f"{contents.data_dir} fits several layouts: {', '.join(found)}; "
            f"choose one, as by --layout={found[0]}, or give the folder of one"
        )
    if not found:
        _refuse_other_numbering(contents)
        looked_for = "".join(f"\n  {layout}: {what}" for layout, what in _LOOKED_FOR.items())
        raise contents.unrecognised(
            f"no known layout in {contents.data_dir}; looked at any depth for{looked_for}"
        )
    return found[0]


def _refuse_other_numbering(contents: Contents) -> None:
    """Raises if pictures of the split numbering have annotations of the other numbering only."""
    files = contents.annotation_files.get(_CARS_ANNOS)
    if contents.devkit and files and not contents.annotation_files.get(_TRAIN_ANNOS):
        raise LayoutError(
            f"{files[0].relative_path} numbers the pictures of car_ims/; those in cars_train/ and "
            "cars_test/ are numbered otherwise, so that it would label them wrongly.\n"
            f"Put {_CARS_META}, {_TRAIN_ANNOS} and {_LABELED_TEST_ANNOS} into {contents.data_dir}."
        )


def _find_devkit(contents: Contents) -> Listing:
    _refuse_other_numbering(contents)
    if not contents.devkit:
        raise _no_picture("devkit", contents)
    files = {
        "train": contents.annotation_file(_TRAIN_ANNOS),
        # Some people have put the labelled file in the place of the other.
        "test": contents.annotation_file(_LABELED_TEST_ANNOS)
        or contents.annotation_file(_TEST_ANNOS),
    }
    meta = contents.annotation_file(_CARS_META)
    class_names = annotations.read_cars_meta(meta) if meta else OFFICIAL_CLASS_NAMES
    notes: list[str] = []
    expected: list[Expected] = []
    pictures: dict[str, Sequence[File]] = {}
    for split, file in files.items():
        there = contents.devkit.get(split, ())
        rows = annotations.read_split_mat(file, len(class_names)) if file else None
        if file is None or rows is None:
            bringer = _TRAIN_ANNOS if split == "train" else _LABELED_TEST_ANNOS
            notes.append(
                f"The {split} split is left out: there are no labels for the {len(there):,} "
                f"pictures in cars_{split}/. {bringer} in {contents.data_dir} would bring it."
            )
            continue
        if meta is None and len(rows) != OFFICIAL_COUNTS[split]:
            raise LayoutError(
                f"{_CARS_META}, which names the classes of {file.relative_path}, is not in "
                f"{contents.data_dir}"
            )
        pictures[split] = there
        folder = _common_folder(there, otherwise=f"cars_{split}")
        expected += [
            Expected(
                id=f"{split}/{_stem(row)}",
                split=split,
                stem=_stem(row),
                label=row.label,
                box=row.box,
                path=f"{folder}/{row.name}",
                source=file.relative_path,
            )
            for row in rows
        ]
    if meta is None:
        notes.append(f"{_CARS_META} is not there; the class names are the official ones.")
    return _from_annotations("devkit", contents, class_names, join(expected, pictures), notes)


def _find_car_ims(contents: Contents) -> Listing:
    file = contents.annotation_file(_CARS_ANNOS)
    if not contents.car_ims:
        _refuse_other_numbering(contents)
    if file is None:
        raise _no_picture("car_ims", contents)
    class_names, rows = annotations.read_cars_annos(file)
    # One folder holds both splits: which one a picture is of, its row says.
    split_of = {_stem(row): "test" if row.is_test else "train" for row in rows}

    def of_split(split: str) -> Iterator[File]:
        return (f for f in contents.car_ims if split_of.get(f.stem, "train") == split)

    pictures = {split: of_split(split) for split in ("train", "test")}
    folder = _common_folder(contents.car_ims, otherwise="car_ims")
    expected = [
        Expected(
            id=_stem(row),
            split=split_of[_stem(row)],
            stem=_stem(row),
            label=row.label,
            box=row.box,
            path=f"{folder}/{row.name}",
            source=file.relative_path,
        )
        for row in rows
    ]
    return _from_annotations("car_ims", contents, class_names, join(expected, pictures), [])


def _find_class_folders(contents: Contents) -> Listing:
    pictures = _class_folders_by_split(contents)
    folder_names = sorted({file.folders[-1] for files in pictures.values() for file in files})
    annotations.check_class_names(folder_names, contents.data_dir)
    notes = [
        f"There is no {split} split: no picture at {split}/<class>/ in {contents.data_dir}."
        for split in ("train", "test")
        if split not in pictures
    ]
    csv_files = {split: contents.annotation_file(f"anno_{split}.csv") for split in SPLITS}
    annotated = {split: file for split, file in csv_files.items() if file is not None}
    lacking = [f"anno_{split}.csv" for split in pictures if split not in annotated]
    if not lacking:
        return _with_csv(contents, pictures, folder_names, annotated, notes)
    if annotated:
        notes.append(f"Boxes are left out, because {', '.join(lacking)} is not there.")
    return _without_csv(contents, pictures, folder_names, notes)


def _class_folders_by_split(contents: Contents) -> dict[str, Sequence[File]]:
    """Returns the pictures in class folders, by split in the order of `SPLITS`."""
    if not contents.class_folders:
        raise _no_picture("class_folders", contents)
    root, *other_roots = sorted(contents.class_folders)
    if other_roots:
        raise LayoutError(
            f"{contents.data_dir} holds class folders below "
            f"{', '.join(name or '.' for name in (root, *other_roots))}; "
            "give one of these folders as --data_dir"
        )
    folder_of_split: dict[str, str] = {}
    for folder in sorted(contents.class_folders[root]):
        split = SPLIT_OF_FOLDER[folder.lower()]
        other = folder_of_split.setdefault(split, folder)
        if other != folder:
            raise LayoutError(
                f"the folders {other} and {folder} in {contents.data_dir} are both the {split} "
                "split; merge them or move one away"
            )
    return {
        split: contents.class_folders[root][folder_of_split[split]]
        for split in SPLITS
        if split in folder_of_split
    }


def _without_csv(
    contents: Contents,
    pictures: Mapping[str, Sequence[File]],
    folder_names: Sequence[str],
    notes: list[str],
) -> Listing:
    class_names = _official_table(folder_names) or tuple(folder_names)
    labels = {_folder_name(name): label for label, name in enumerate(class_names)}

    def images() -> Iterator[CarImage]:
        for split, files in pictures.items():
            for file in files:
                folder = file.folders[-1]
                id = f"{split}/{folder}/{file.stem}"
                yield CarImage.of_file(file, id, split, labels[folder], box=None)

    notes += _note_on_subset(class_names, folder_names)
    found = {split: len(files) for split, files in pictures.items()}
    splits = count(found, {}, class_names, is_annotated=False)
    return _listing("class_folders", contents, class_names, images(), splits, notes)


def _with_csv(
    contents: Contents,
    pictures: Mapping[str, Sequence[File]],
    folder_names: Sequence[str],
    csv_files: Mapping[str, File],
    notes: list[str],
) -> Listing:
    names_csv = contents.annotation_file(_NAMES_CSV)
    class_names = (
        annotations.read_names_csv(names_csv) if names_csv else _official_table(folder_names)
    )
    if class_names is None:
        raise LayoutError(
            f"{_NAMES_CSV}, which names the classes of "
            f"{', '.join(file.relative_path for file in csv_files.values())}, is not in "
            f"{contents.data_dir}"
        )
    unknown = set(folder_names) - {_folder_name(name) for name in class_names}
    if unknown and names_csv:
        raise LayoutError(
            f"the class folder {min(unknown)!r} has no line in {names_csv.relative_path}"
        )
    (root,) = contents.class_folders
    expected = []
    for split, file in csv_files.items():
        there = pictures.get(split)
        split_folder = there[0].folders[-2] if there else split
        for row in annotations.read_csv(file, len(class_names)):
            class_folder = _folder_name(class_names[row.label])
            expected.append(
                Expected(
                    id=f"{split}/{class_folder}/{_stem(row)}",
                    split=split,
                    stem=_stem(row),
                    label=row.label,
                    box=row.box,
                    path="/".join(filter(None, (root, split_folder, class_folder, row.name))),
                    source=file.relative_path,
                    folder=class_folder,
                )
            )
    notes += _note_on_subset(class_names, folder_names)
    joined = join(expected, pictures)
    return _from_annotations("class_folders", contents, class_names, joined, notes)


def _from_annotations(
    layout: str,
    contents: Contents,
    class_names: tuple[str, ...],
    joined: Joined,
    notes: Sequence[str],
) -> Listing:
    if not joined.images:
        raise _no_picture(layout, contents, notes)
    found = collections.Counter(image.split for image in joined.images)
    splits = count(found, joined.missing, class_names, is_annotated=True)
    missing = [row for rows in joined.missing.values() for row in rows]
    notes = (*notes, *notes_on(joined))
    return _listing(layout, contents, class_names, joined.images, splits, notes, missing)


def _listing(
    layout: str,
    contents: Contents,
    class_names: tuple[str, ...],
    images: Iterable[CarImage],
    splits: tuple[SplitCount, ...],
    notes: Sequence[str],
    missing: Sequence[Reject] = (),
) -> Listing:
    elsewhere = contents.elsewhere
    first = elsewhere[0] if elsewhere else None
    return Listing(
        layout=layout,
        class_names=class_names,
        images=sort_by_id(images),
        missing=tuple(sorted(missing)),
        splits=splits,
        notes=(*notes, *note_on_unused(len(elsewhere), first, f"outside the {layout} layout")),
    )


def _no_picture(layout: str, contents: Contents, notes: Sequence[str] = ()) -> LayoutError:
    problem = (
        f"no annotated picture of the {layout} layout in {contents.data_dir}; looked for "
        f"{_LOOKED_FOR[layout]}"
    )
    return contents.unrecognised("\n".join((problem, *notes)))


def _official_table(folder_names: Iterable[str]) -> tuple[str, ...] | None:
    """Returns the official class table if all folders are of official classes, else None."""
    official = {_folder_name(name) for name in OFFICIAL_CLASS_NAMES}
    return OFFICIAL_CLASS_NAMES if official.issuperset(folder_names) else None


def _note_on_subset(class_names: Sequence[str], folder_names: Sequence[str]) -> list[str]:
    if len(folder_names) == len(class_names):
        return []
    return [
        f"There are folders of {len(folder_names)} classes only; the class table has "
        f"{len(class_names)}, so that labels are those of the whole."
    ]


def _folder_name(class_name: str) -> str:
    """Returns the folder of a class: a slash cannot stand in the name of a folder."""
    return class_name.replace("/", "-")


def _stem(row: Annotation) -> str:
    ending = extension(row.name)
    return row.name[: -len(ending)] if ending in IMAGE_EXTENSIONS else row.name


def _common_folder(files: Sequence[File], otherwise: str) -> str:
    """Returns the folder of most files: where a missing one would be looked for."""
    counts = collections.Counter("/".join(file.folders) for file in files)
    return counts.most_common(1)[0][0] if counts else otherwise


_READERS: dict[str, Callable[[Contents], Listing]] = {
    "devkit": _find_devkit,
    "car_ims": _find_car_ims,
    "class_folders": _find_class_folders,
}
