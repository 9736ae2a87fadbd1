import json

import pytest
import rich.console

from pipeline import listing
from pipeline.class_names import OFFICIAL_CLASS_NAMES
from pipeline.folders import File, LayoutError
from pipeline.listing import CarImage, Expected, Listing, SplitCount
from pipeline.rejects import MISSING, Reject

BOX = (1, 2, 30, 40)


def file(relative_path):
    return File("/data/" + relative_path, relative_path, 7, 1.5)


def row(split, stem, **changes):
    fields = {
        "id": f"{split}/{stem}",
        "split": split,
        "stem": stem,
        "label": 3,
        "box": BOX,
        "path": f"{split}/{stem}.jpg",
        "source": "annos.mat",
    }
    return Expected(**{**fields, **changes})


@pytest.mark.parametrize("box", [None, BOX])
def test_a_picture_comes_back_from_a_line_of_json(box):
    image = CarImage.of_file(file("a b/ü.jpg"), "train/ü", "train", 3, box)
    assert CarImage.from_json(json.loads(json.dumps(image.to_json()))) == image


@pytest.mark.parametrize(("split", "label"), [("val", 0), ("train", -1)])
def test_an_impossible_picture_is_refused(split, label):
    with pytest.raises(ValueError, match=r"is 'val'|is -1"):
        CarImage.of_file(file("1.jpg"), "1", split, label, None)


def test_rows_are_joined_by_split_and_name_without_extension():
    joined = listing.join(
        [row("train", "1"), row("test", "1", label=4), row("train", "2")],
        {"train": [file("a/1.PNG"), file("a/3.jpg")], "test": [file("b/1.jpg")]},
    )
    assert joined.images == [
        CarImage("train/1", "train", "/data/a/1.PNG", "a/1.PNG", 3, BOX, 7, 1.5),
        CarImage("test/1", "test", "/data/b/1.jpg", "b/1.jpg", 4, BOX, 7, 1.5),
    ]
    detail = "annos.mat names it in the train split; there is no such file"
    assert joined.missing == {"train": [Reject("train/2", "train/2.jpg", MISSING, detail)]}
    assert (joined.unused, joined.first_unused) == (1, file("a/3.jpg"))


def test_two_files_for_one_row_are_an_error_that_names_both():
    with pytest.raises(LayoutError, match=r"id train/1: a/1\.jpg and b/1\.png"):
        listing.join([row("train", "1")], {"train": [file("a/1.jpg"), file("b/1.png")]})


def test_two_files_without_a_row_are_only_unused():
    joined = listing.join([row("train", "2")], {"train": [file("a/1.jpg"), file("b/1.png")]})
    assert (joined.unused, joined.first_unused) == (2, file("a/1.jpg"))


def test_two_rows_for_one_file_are_an_error():
    with pytest.raises(LayoutError, match=r"annos\.mat has two rows for 1;"):
        listing.join([row("train", "1"), row("train", "1", label=4)], {})


def test_a_class_folder_that_contradicts_the_row_is_an_error_that_names_both():
    rows = [row("train", "1", folder="Beetle")]
    files = {"train": [file("train/Ape/1.jpg")]}
    with pytest.raises(LayoutError, match=r"train/Ape/1\.jpg .*'Ape'.* annos\.mat .*'Beetle'"):
        listing.join(rows, files)


def test_notes_tell_what_a_person_must_know():
    joined = listing.join(
        [row("train", "1"), row("train", "2", box=(9, 9, 3, 9)), row("test", "1")],
        {"train": [file("1.jpg"), file("2.jpg"), file("3.jpg")]},
    )
    assert listing.notes_on(joined) == [
        "None of the 1 annotated pictures of the test split is there; looked for test/1.jpg and "
        "so on. To leave the split out, take its annotation file away.",
        "1 pictures without annotation are left out, such as 3.jpg.",
        "1 boxes hold no pixel, such as (9, 9, 3, 9) of train/2; those pictures will be rejected.",
    ]
    quiet = listing.join([row("train", "1"), row("train", "2")], {"train": [file("1.jpg")]})
    assert listing.notes_on(quiet) == []


def test_counts_stand_against_the_official_ones_for_the_official_classes_only():
    joined = listing.join(
        [row("train", "1"), row("train", "2"), row("test", "1")], {"train": [file("1.jpg")]}
    )
    assert listing.count({"train": 1}, joined.missing, OFFICIAL_CLASS_NAMES, True) == (
        SplitCount("train", found=1, missing=1, annotated=2, official=8144),
        SplitCount("test", found=0, missing=1, annotated=1, official=8041),
    )
    assert listing.count({"train": 1}, {}, ("A", "B"), False) == (
        SplitCount("train", found=1, missing=0, annotated=None, official=None),
    )


def test_the_table_shows_each_split():
    images = (CarImage.of_file(file("1.jpg"), "train/1", "train", 0, None),)
    splits = (
        SplitCount("train", 1, 0, None, 8144),
        SplitCount("test", 0, 1234, 1234, None),
    )
    found = Listing("devkit", ("A", "B"), images, (), splits, ())
    console = rich.console.Console(width=80, file=None, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(listing.table(found))
    lines = [line.replace("│", " ").split() for line in capture.get().splitlines()]
    assert ["devkit:", "2", "classes,", "no", "boxes"] in lines
    assert ["train", "1", "0", "–", "8,144"] in lines
    assert ["test", "0", "1,234", "1,234", "–"] in lines
    assert found.missing_by_split == {"train": 0, "test": 1234}
