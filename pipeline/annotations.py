"""Annotation files: the `.mat` files of the official releases and the `.csv` files of Kaggle's.

The fields of `.mat` structs are read by name: their order differs between the official files.
"""

import csv
import dataclasses
import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline import folders
from pipeline.folders import File, LayoutError

Box = tuple[int, int, int, int]

# Stands for a box that is not made of whole numbers. No pixel has the number 0, so that decoding
# rejects the picture like any other with an impossible box.
UNREADABLE_BOX: Box = (0, 0, 0, 0)

_BOX_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_CSV_FIELDS = 6  # file, x1, y1, x2, y2, class


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """One row of an annotation file.

    Attributes:
        name: file name of the picture, without folders.
        label: 0-based position in the class table.
        box: x1, y1, x2, y2 in 1-based inclusive pixels; may be empty, see `has_pixels`.
        is_test: the test flag of `cars_annos.mat`; False in files that hold one split only.
    """

    name: str
    label: int
    box: Box
    is_test: bool = False


def has_pixels(box: Box) -> bool:
    """Returns whether a box has a pixel of a picture, if only the picture is large enough."""
    x1, y1, x2, y2 = box
    return max(x1, 1) <= x2 and max(y1, 1) <= y2


def check_class_names(names: Iterable[str], source: str) -> tuple[str, ...]:
    """Checks a class table.

    Args:
        names: class names, in order of their labels.
        source: where they come from, for the message.

    Returns:
        The names.

    Raises:
        LayoutError: if there is none, if two are equal, or if one is empty, has surrounding space
            or a line break (TFDS strips names and stores one a line).
    """
    table = tuple(names)
    if not table:
        raise LayoutError(f"{source}: there is no class name")
    for name in table:
        if name != name.strip() or name.splitlines() != [name]:
            raise LayoutError(
                f"{source}: the class name {name!r} is empty, has surrounding space or a line "
                "break; rename it"
            )
    if len(set(table)) < len(table):
        twice = next(name for name in table if table.count(name) > 1)
        raise LayoutError(f"{source}: the class name {twice!r} stands there twice")
    return table


def read_cars_meta(file: File) -> tuple[str, ...]:
    """Reads the class names of `cars_meta.mat`.

    Raises:
        LayoutError: if the file is damaged, has no `class_names`, or a name is refused.
    """
    return _class_names(_load_mat(file), file)


def read_split_mat(file: File, class_count: int) -> list[Annotation] | None:
    """Reads `cars_train_annos.mat`, `cars_test_annos.mat` or `cars_test_annos_withlabels.mat`.

    Args:
        file: the annotation file.
        class_count: size of the class table.

    Returns:
        The rows in file order, or None if the file has no `class` field: a test file without
        labels.

    Raises:
        LayoutError: if the file is damaged, lacks another field, or a class is out of range.
    """
    rows = _variable(_load_mat(file), "annotations", file)
    if rows.dtype.names is not None and "class" not in rows.dtype.names:
        return None
    return _annotations(rows, "fname", class_count, file)


def read_cars_annos(file: File) -> tuple[tuple[str, ...], list[Annotation]]:
    """Reads `cars_annos.mat`, which holds class names, both splits and a test flag in each row.

    Returns:
        The class table, and the rows in file order.

    Raises:
        LayoutError: if the file is damaged, lacks a field, a name is refused, or a class or a flag
            is out of range.
    """
    variables = _load_mat(file)
    class_names = _class_names(variables, file)
    rows = _variable(variables, "annotations", file)
    annotations = _annotations(rows, "relative_im_path", len(class_names), file)
    flags = _column(rows, "test", file)
    for row, flag in enumerate(flags, 1):
        if _whole(flag) not in (0, 1):
            raise LayoutError(f"{file.relative_path}, row {row}: test is {flag!r}, not 0 or 1")
    return class_names, [
        dataclasses.replace(annotation, is_test=bool(flag))
        for annotation, flag in zip(annotations, flags, strict=True)
    ]


def read_csv(file: File, class_count: int) -> list[Annotation]:
    """Reads `anno_train.csv` or `anno_test.csv`: file, x1, y1, x2, y2, class; no header line.

    Args:
        file: the annotation file.
        class_count: size of the class table.

    Returns:
        The rows in file order.

    Raises:
        LayoutError: if the file is not UTF-8, a line has other than six fields, or a class is out
            of range.
    """
    annotations = []
    for line, fields in _csv_lines(file):
        where = f"{file.relative_path}, line {line}"
        if len(fields) != _CSV_FIELDS:
            raise LayoutError(
                f"{where}: {len(fields)} fields, not {_CSV_FIELDS} (file, x1, y1, x2, y2, class)"
            )
        label = _label(fields[5], class_count, where)
        annotations.append(Annotation(_base_name(fields[0]), label, _box(fields[1:5])))
    return annotations


def read_names_csv(file: File) -> tuple[str, ...]:
    """Reads `names.csv`: one class name a line, in order of the class numbers.

    Raises:
        LayoutError: if the file is not UTF-8, a line has more than one field, or a name is refused.
    """
    names = []
    for line, fields in _csv_lines(file):
        if len(fields) != 1:
            raise LayoutError(
                f"{file.relative_path}, line {line}: {len(fields)} fields, not one class name; "
                "quote a name that has a comma"
            )
        names.append(fields[0])
    return check_class_names(names, file.relative_path)


def _csv_lines(file: File) -> list[tuple[int, list[str]]]:
    try:
        text = folders.read(file).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [(reader.line_num, fields) for fields in reader if fields]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LayoutError(f"{file.relative_path} is not CSV in UTF-8: {error}") from error


def _load_mat(file: File) -> dict[str, Any]:
    import scipy.io
    from scipy.io.matlab import MatReadError

    content = folders.read(file)
    try:
        variables: dict[str, Any] = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)
    # What SciPy raises on damaged bytes depends on where they are damaged.
    except (
        MatReadError,
        ArithmeticError,
        LookupError,
        MemoryError,
        NotImplementedError,
        OSError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        raise LayoutError(
            f"{file.relative_path} ({len(content):,} bytes) is not a readable .mat file "
            f"({error}); download it again"
        ) from error
    return variables


def _variable(variables: dict[str, Any], name: str, file: File) -> Any:
    import numpy as np

    if name not in variables:
        there = ", ".join(key for key in variables if not key.startswith("__")) or "nothing"
        raise LayoutError(f"{file.relative_path} has no variable {name!r}, only {there}")
    return np.atleast_1d(variables[name])  # squeezing made a scalar of a single row


def _class_names(variables: dict[str, Any], file: File) -> tuple[str, ...]:
    values = _variable(variables, "class_names", file)
    return check_class_names([str(value) for value in values.tolist()], file.relative_path)


def _column(rows: Any, field: str, file: File) -> list[Any]:
    if field not in (rows.dtype.names or ()):
        there = ", ".join(rows.dtype.names or ()) or "no fields"
        raise LayoutError(
            f"the annotations in {file.relative_path} have no field {field!r}, only {there}"
        )
    values: list[Any] = rows[field].tolist()
    return values


def _annotations(rows: Any, name_field: str, class_count: int, file: File) -> list[Annotation]:
    names = _column(rows, name_field, file)
    classes = _column(rows, "class", file)
    boxes = zip(*(_column(rows, field, file) for field in _BOX_FIELDS), strict=True)
    return [
        Annotation(
            _base_name(str(name)),
            _label(number, class_count, f"{file.relative_path}, row {row}"),
            _box(box),
        )
        for row, (name, number, box) in enumerate(zip(names, classes, boxes, strict=True), 1)
    ]


def _base_name(name: str) -> str:
    return name.strip().replace("\\", "/").rpartition("/")[2]


def _label(number: Any, class_count: int, where: str) -> int:
    value = _whole(number)
    if value is None or not 1 <= value <= class_count:
        raise LayoutError(f"{where}: class is {number!r}, not a number from 1 to {class_count}")
    return value - 1


def _box(values: Sequence[Any]) -> Box:
    x1, y1, x2, y2 = (_whole(value) for value in values)
    if x1 is None or y1 is None or x2 is None or y2 is None:
        return UNREADABLE_BOX
    return x1, y1, x2, y2


def _whole(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None
