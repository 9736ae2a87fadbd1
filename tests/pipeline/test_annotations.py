import random

import numpy as np
import pytest
import scipy.io

from pipeline import annotations
from pipeline.annotations import Annotation, LayoutError
from pipeline.folders import File

NAMES = ["Beetle", "Ape", "Cord"]
ROW = {
    "fname": "00001.jpg",
    "bbox_x1": 3,
    "bbox_y1": 5,
    "bbox_x2": 70,
    "bbox_y2": 40,
    "class": 2,
}
OTHER = {**ROW, "fname": "00002.jpg", "class": 3, "bbox_x1": 300}


def as_file(path):
    return File(str(path), path.name, path.stat().st_size, 0.0)


def struct(rows, order=None):
    fields = list(order or rows[0])
    values = [tuple(row[field] for field in fields) for row in rows]
    return np.array(values, dtype=[(field, object) for field in fields])


@pytest.fixture
def mat(tmp_path):
    def write(**variables):
        path = tmp_path / "some.mat"
        scipy.io.savemat(path, variables)
        return as_file(path)

    return write


@pytest.fixture
def text(tmp_path):
    def write(content, name="some.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return as_file(path)

    return write


def test_fields_are_read_by_name_in_any_order(mat):
    for seed in range(5):
        order = random.Random(seed).sample(sorted(ROW), len(ROW))
        assert annotations.read_split_mat(mat(annotations=struct([ROW, OTHER], order)), 3) == [
            Annotation("00001.jpg", 1, (3, 5, 70, 40)),
            Annotation("00002.jpg", 2, (300, 5, 70, 40)),
        ]


def test_a_single_row_and_a_single_class_are_read(mat):
    file = mat(annotations=struct([ROW]), class_names=np.array(["A"], dtype=object))
    assert annotations.read_split_mat(file, 2) == [Annotation("00001.jpg", 1, (3, 5, 70, 40))]
    assert annotations.read_cars_meta(file) == ("A",)


def test_a_file_without_classes_is_told_from_a_damaged_one(mat):
    unlabeled = {key: value for key, value in ROW.items() if key != "class"}
    assert annotations.read_split_mat(mat(annotations=struct([unlabeled])), 3) is None
    without_box = {key: value for key, value in ROW.items() if key != "bbox_y2"}
    with pytest.raises(LayoutError, match=r"some\.mat have no field 'bbox_y2', only fname"):
        annotations.read_split_mat(mat(annotations=struct([without_box])), 3)
    with pytest.raises(LayoutError, match=r"no variable 'annotations', only annos"):
        annotations.read_split_mat(mat(annos=1), 3)


@pytest.mark.parametrize("number", [0, 4, 2.5, float("nan"), "two", -1])
def test_a_class_out_of_range_is_an_error_that_names_the_row(mat, number):
    with pytest.raises(LayoutError, match=r"some\.mat, row 2: class is .*from 1 to 3"):
        annotations.read_split_mat(mat(annotations=struct([ROW, {**ROW, "class": number}])), 3)


@pytest.mark.parametrize("name", ["car_ims/000001.jpg", r"C:\car_ims\000001.jpg", "000001.jpg "])
def test_folders_in_file_names_do_not_matter(mat, name):
    rows = [{**ROW, "relative_im_path": name, "test": 1}]
    file = mat(annotations=struct(rows), class_names=np.array(NAMES, dtype=object))
    names, (row,) = annotations.read_cars_annos(file)
    assert names == tuple(NAMES)
    assert row == Annotation("000001.jpg", 1, (3, 5, 70, 40), is_test=True)


def test_a_test_flag_other_than_0_or_1_is_an_error(mat):
    rows = [{**ROW, "relative_im_path": "1.jpg", "test": flag} for flag in (0, 2)]
    file = mat(annotations=struct(rows), class_names=np.array(NAMES, dtype=object))
    with pytest.raises(LayoutError, match="row 2: test is 2"):
        annotations.read_cars_annos(file)


@pytest.mark.parametrize("value", [float("nan"), 1.5, "x", np.array([])])
def test_a_box_that_is_not_whole_numbers_has_no_pixel_and_is_no_error(mat, value):
    (row,) = annotations.read_split_mat(mat(annotations=struct([{**ROW, "bbox_x2": value}])), 3)
    assert row.box == annotations.UNREADABLE_BOX
    assert not annotations.has_pixels(row.box)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 1, 1, 1), True),  # ends are inclusive
        ((0, -4, 1, 1), True),  # pixel 1 is inside
        ((0, 0, 0, 0), False),
        ((5, 1, 4, 9), False),
        ((1, 5, 9, 4), False),
        ((-9, 1, -2, 9), False),
    ],
)
def test_has_pixels(box, expected):
    assert annotations.has_pixels(box) is expected


# Cut short, not changed: on some changed bytes SciPy 1.17 crashes the interpreter.
@pytest.mark.parametrize("compressed", [False, True])
def test_an_interrupted_download_is_named_wherever_it_ended(tmp_path, compressed):
    rows = [{**ROW, "fname": f"{i:05d}.jpg"} for i in range(20)]
    path = tmp_path / "cut.mat"
    scipy.io.savemat(path, {"annotations": struct(rows)}, do_compression=compressed)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 8, len(whole) // 60):
        path.write_bytes(whole[:length])
        with pytest.raises(LayoutError, match=r"cut\.mat"):
            annotations.read_split_mat(as_file(path), 3)


@pytest.mark.parametrize("content", [b"", b"<html>sign in</html>", b"version https://git-lfs"])
def test_what_is_no_mat_file_is_an_error_with_its_size(text, content):
    with pytest.raises(LayoutError, match=rf"x\.mat \({len(content)} bytes\).*download it again"):
        annotations.read_cars_meta(text(content, "x.mat"))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    gone = File(str(tmp_path / "gone.csv"), "gone.csv", 1, 0.0)
    with pytest.raises(LayoutError, match=r"cannot read .*gone\.csv"):
        annotations.read_csv(gone, 3)
    with pytest.raises(LayoutError, match=r"cannot read .*gone\.csv"):
        annotations.read_cars_meta(gone)


def test_csv_rows_are_read(text):
    file = text("00001.jpg,3,5,70,40,2\r\n\r\n00002.jpg,300,5,70,40.0,3\r\n")
    assert annotations.read_csv(file, 3) == [
        Annotation("00001.jpg", 1, (3, 5, 70, 40)),
        Annotation("00002.jpg", 2, (300, 5, 70, 40)),
    ]
    assert annotations.read_csv(text("1.jpg,,x,70,40,2"), 3)[0].box == annotations.UNREADABLE_BOX


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1.jpg,1,1,9,9,1\n2.jpg,1,1,9,9", r"some\.csv, line 2: 5 fields, not 6"),
        ("file,x1,y1,x2,y2,class\n", r"line 1: class is 'class', not a number from 1 to 3"),
        ("1.jpg,1,1,9,9,4", "line 1: class is '4', not a number from 1 to 3"),
        (b"\xff\xfe1", "not CSV in UTF-8"),
        ('1.jpg,1,1,9,9,"1', "not CSV in UTF-8"),
    ],
)
def test_a_bad_line_of_csv_is_an_error_that_names_it(text, content, message):
    with pytest.raises(LayoutError, match=message):
        annotations.read_csv(text(content), 3)


def test_names_are_read_with_commas_quotes_and_a_byte_order_mark(text):
    assert annotations.read_names_csv(text('﻿A/B\n"C, D"\n')) == ("A/B", "C, D")
    with pytest.raises(LayoutError, match="line 1: 2 fields, not one class name"):
        annotations.read_names_csv(text("C, D"))


@pytest.mark.parametrize("bad", ["", " ", " A", "A ", "A\tB\n", "A\nB", "A\u2028B", "\u00a0A"])
def test_names_that_tfds_would_change_are_refused(bad):
    with pytest.raises(LayoutError, match="here: the class name .*rename it"):
        annotations.check_class_names(["Good", bad], "here")


def test_a_table_is_kept_in_its_order_and_has_no_name_twice(mat):
    file = mat(class_names=np.array(NAMES, dtype=object))
    assert annotations.read_cars_meta(file) == tuple(NAMES)
    with pytest.raises(LayoutError, match="'A' stands there twice"):
        annotations.check_class_names(["A", "B", "A"], "here")
    with pytest.raises(LayoutError, match="no class name"):
        annotations.check_class_names([], "here")
