import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

from pipeline import folders, layouts
from pipeline.class_names import OFFICIAL_CLASS_NAMES
from pipeline.folders import File
from pipeline.layouts import LayoutError, find

NAMES = ["Beetle 2012", "Ape C/V 1998", "Cord 1936"]  # not in the order of code points
TRAIN = [("00001", 2), ("00002", 3), ("00003", 1)]  # file and 1-based class
TEST = [("00001", 1), ("00002", 2)]


def box_of(stem):
    return (int(stem), 2, 30 + int(stem), 40)


def touch(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())


def write_mat(path, rows=None, fields=None, names=None):
    """Writes `annotations` of (dict per row) with the given order of fields, and `class_names`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    variables = {}
    if rows is not None:
        fields = fields or list(rows[0])
        values = [tuple(row[field] for field in fields) for row in rows]
        variables["annotations"] = np.array(values, dtype=[(name, object) for name in fields])
    if names is not None:
        variables["class_names"] = np.array(names, dtype=object)
    scipy.io.savemat(path, variables)


def mat_row(stem, number, name_field="fname", prefix="", **more):
    corners = zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), box_of(stem), strict=True)
    return {"class": number, name_field: f"{prefix}{stem}.jpg", **dict(corners), **more}


def write_meta(path, names=NAMES):
    write_mat(path, names=names)


def write_split(path, rows, labeled=True):
    rows = [mat_row(*row) for row in rows]
    fields = [field for field in rows[0] if labeled or field != "class"]
    write_mat(path, rows, fields)


@pytest.fixture
def devkit(tmp_path):
    """The official split layout, as torchvision wants it."""
    root = tmp_path / "data"
    write_meta(root / "devkit/cars_meta.mat")
    write_split(root / "devkit/cars_train_annos.mat", TRAIN)
    write_split(root / "devkit/cars_test_annos.mat", TEST, labeled=False)
    write_split(root / "cars_test_annos_withlabels.mat", TEST)
    touch(root, *(f"cars_train/{stem}.jpg" for stem, _ in TRAIN))
    touch(root, *(f"cars_test/{stem}.jpg" for stem, _ in TEST))
    return root


@pytest.fixture
def kaggle(tmp_path):
    """Class folders with CSVs, as Kaggle's edition has them."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "names.csv").write_text("".join(f"{name}\n" for name in NAMES))
    for split, rows in (("train", TRAIN), ("test", TEST)):
        lines = [
            ",".join(map(str, (f"{stem}.jpg", *box_of(stem), number))) for stem, number in rows
        ]
        (root / f"anno_{split}.csv").write_text("\n".join(lines) + "\n")
        for stem, number in rows:
            folder = NAMES[number - 1].replace("/", "-")
            touch(root, f"car_data/car_data/{split}/{folder}/{stem}.jpg")
    return root


def labels(listing):
    return {image.id: listing.class_names[image.label] for image in listing.images}


DEVKIT_LABELS = {
    "train/00001": "Ape C/V 1998",
    "train/00002": "Cord 1936",
    "train/00003": "Beetle 2012",
    "test/00001": "Beetle 2012",
    "test/00002": "Ape C/V 1998",
}
KAGGLE_LABELS = {
    f"{id.split('/')[0]}/{name.replace('/', '-')}/{id.split('/')[1]}": name
    for id, name in DEVKIT_LABELS.items()
}


@pytest.mark.parametrize(
    "moves",
    [
        [],
        # by hand: no devkit folder
        [(f"devkit/{name}", name) for name in ("cars_meta.mat", "cars_train_annos.mat")],
        [("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")],
        [("cars_test_annos_withlabels.mat", "cars_test_annos_withlabels (1).mat")],
        # the labelled file in the place of the other
        [("cars_test_annos_withlabels.mat", "devkit/cars_test_annos.mat")],
        # Kaggle
        [("cars_train", "tmp"), ("tmp", "cars_train/cars_train"), ("devkit", "car_devkit/devkit")],
        # the folder above
        [
            (name, f"stanford_cars/{name}")
            for name in ("devkit", "cars_train", "cars_test", "cars_test_annos_withlabels.mat")
        ],
    ],
)
def test_the_devkit_layout_is_found_wherever_people_put_it(devkit, moves):
    for source, target in moves:
        (devkit / target).parent.mkdir(parents=True, exist_ok=True)
        os.replace(devkit / source, devkit / target)
    listing = find(str(devkit))
    assert listing.layout == "devkit"
    assert labels(listing) == DEVKIT_LABELS
    assert listing.class_names == tuple(NAMES)
    assert all(image.box == box_of(image.id.split("/")[1]) for image in listing.images)
    assert listing.has_boxes
    assert listing.missing == ()
    assert listing.notes == ()
    assert [(row.split, row.found, row.annotated, row.official) for row in listing.splits] == [
        ("train", 3, 3, None),
        ("test", 2, 2, None),
    ]


def test_a_picture_knows_its_file(devkit):
    path = devkit / "cars_train/00001.jpg"
    os.utime(path, (5, 6.5))
    image = by_id(find(str(devkit)))["train/00001"]
    assert (image.id, image.split, image.label) == ("train/00001", "train", 1)
    assert (image.path, image.relative_path) == (str(path), "cars_train/00001.jpg")
    assert (image.size, image.modified) == (path.stat().st_size, 6.5)


def by_id(listing):
    return {image.id: image for image in listing.images}


def test_pictures_are_ordered_by_id(devkit):
    assert [image.id for image in find(str(devkit)).images] == sorted(DEVKIT_LABELS)


def test_the_test_split_without_labels_is_left_out_and_the_file_named(devkit):
    (devkit / "cars_test_annos_withlabels.mat").unlink()
    listing = find(str(devkit))
    assert {image.split for image in listing.images} == {"train"}
    assert [row.split for row in listing.splits] == ["train"]
    (note,) = listing.notes
    assert note.startswith("The test split is left out: there are no labels for the 2 pictures")
    assert f"cars_test_annos_withlabels.mat in {devkit} would bring it" in note


def test_the_train_split_without_annotations_is_left_out_likewise(devkit):
    (devkit / "devkit/cars_train_annos.mat").unlink()
    listing = find(str(devkit))
    assert {image.split for image in listing.images} == {"test"}
    assert "cars_train_annos.mat" in listing.notes[0]


def test_annotated_pictures_without_a_file_are_missing(devkit):
    (devkit / "cars_train/00002.jpg").unlink()
    shutil.rmtree(devkit / "cars_test")
    (devkit / "cars_test").mkdir()  # empty, as after a download that failed
    listing = find(str(devkit))
    assert [(row.id, row.path, row.reason) for row in listing.missing] == [
        ("test/00001", "cars_test/00001.jpg", "missing"),
        ("test/00002", "cars_test/00002.jpg", "missing"),
        ("train/00002", "cars_train/00002.jpg", "missing"),
    ]
    assert listing.missing_by_split == {"train": 1, "test": 2}
    assert [(row.found, row.missing, row.annotated) for row in listing.splits] == [
        (2, 1, 3),
        (0, 2, 2),
    ]
    assert "None of the 2 annotated pictures of the test split is there" in listing.notes[0]


def test_missing_pictures_are_looked_for_beside_the_others(devkit):
    os.replace(devkit / "cars_train", devkit / "tmp")
    (devkit / "cars_train").mkdir()
    os.replace(devkit / "tmp", devkit / "cars_train/cars_train")
    (devkit / "cars_train/cars_train/00002.jpg").unlink()
    (row,) = find(str(devkit)).missing
    assert row.path == "cars_train/cars_train/00002.jpg"


def test_pictures_without_annotation_are_left_out_and_counted(devkit):
    touch(devkit, "cars_train/07777.jpg", "cars_train/08888.jpg", "pad/me.png")
    listing = find(str(devkit))
    assert labels(listing) == DEVKIT_LABELS
    assert listing.notes == (
        "2 pictures without annotation are left out, such as cars_train/07777.jpg.",
        "1 pictures outside the devkit layout are left out, such as pad/me.png.",
    )


def test_two_pictures_with_one_id_are_an_error_that_names_both(devkit):
    touch(devkit, "cars_train/cars_train/00002.jpg")
    with pytest.raises(
        LayoutError,
        match=r"train/00002: cars_train/00002\.jpg and cars_train/cars_train/00002\.jpg",
    ):
        find(str(devkit))


def test_a_bad_box_is_kept_for_the_decoder_and_noted(devkit):
    rows = [mat_row(*row) for row in TRAIN]
    rows[1]["bbox_x1"] = 4000
    write_mat(devkit / "devkit/cars_train_annos.mat", rows)
    listing = find(str(devkit))
    assert by_id(listing)["train/00002"].box == (4000, 2, 32, 40)
    assert "(4000, 2, 32, 40) of train/00002" in listing.notes[0]


def test_class_names_missing_are_an_error_unless_the_rows_are_the_official_ones(
    devkit, monkeypatch
):
    (devkit / "devkit/cars_meta.mat").unlink()
    with pytest.raises(LayoutError, match=r"cars_meta\.mat, which names the classes of devkit/"):
        find(str(devkit))
    monkeypatch.setitem(layouts.OFFICIAL_COUNTS, "train", len(TRAIN))
    (devkit / "cars_test_annos_withlabels.mat").unlink()
    listing = find(str(devkit))
    assert listing.class_names == OFFICIAL_CLASS_NAMES
    assert any("cars_meta.mat is not there" in note for note in listing.notes)
    assert listing.splits == (layouts.SplitCount("train", 3, 0, 3, 3),)


def test_a_class_name_that_tfds_would_change_is_refused(devkit):
    write_meta(devkit / "devkit/cars_meta.mat", [*NAMES[:2], "Cord 1936 "])
    with pytest.raises(LayoutError, match=r"devkit/cars_meta\.mat: the class name 'Cord 1936 '"):
        find(str(devkit))


def test_annotations_of_more_classes_than_names_are_refused(devkit):
    write_meta(devkit / "devkit/cars_meta.mat", NAMES[:2])
    with pytest.raises(LayoutError, match="row 2: class is 3, not a number from 1 to 2"):
        find(str(devkit))


def write_cars_annos(path, rows):
    write_mat(
        path,
        [
            mat_row(stem, number, "relative_im_path", "car_ims/", test=is_test)
            for stem, number, is_test in rows
        ],
        ["test", "bbox_y2", "class", "bbox_x2", "relative_im_path", "bbox_y1", "bbox_x1"],
        NAMES,
    )


CAR_IMS = [("000001", 1, 0), ("000002", 1, 1), ("000003", 3, 0)]


@pytest.mark.parametrize("folder", ["car_ims", "car_ims/car_ims", "sub/car_ims"])
def test_the_car_ims_layout_is_found(tmp_path, folder):
    write_cars_annos(tmp_path / "cars_annos.mat", CAR_IMS)
    touch(tmp_path, f"{folder}/000001.jpg", f"{folder}/000002.jpg", f"{folder}/000009.jpg")
    listing = find(str(tmp_path))
    assert listing.layout == "car_ims"
    assert [(image.id, image.split, image.label) for image in listing.images] == [
        ("000001", "train", 0),
        ("000002", "test", 0),
    ]
    assert listing.images[0].box == box_of("000001")
    (row,) = listing.missing
    assert (row.id, row.path) == ("000003", f"{folder}/000003.jpg")
    assert "train split" in row.detail
    assert listing.missing_by_split == {"train": 1, "test": 0}
    assert listing.notes == (
        f"1 pictures without annotation are left out, such as {folder}/000009.jpg.",
    )


@pytest.mark.parametrize("layout", ["auto", "devkit", "car_ims"])
def test_annotations_of_the_other_numbering_are_refused_and_explained(tmp_path, layout):
    write_cars_annos(tmp_path / "cars_annos.mat", CAR_IMS)
    touch(tmp_path, "cars_train/cars_train/00001.jpg", "cars_test/cars_test/00001.jpg")
    with pytest.raises(LayoutError, match=r"cars_annos\.mat numbers the pictures of car_ims/"):
        find(str(tmp_path), layout)
    # a labelled test file alone does not make the train pictures safe
    write_split(tmp_path / "cars_test_annos_withlabels.mat", TEST)
    with pytest.raises(LayoutError, match="label them wrongly"):
        find(str(tmp_path))


def test_annotations_of_the_other_numbering_do_no_harm_beside_the_right_ones(devkit):
    write_cars_annos(devkit / "cars_annos.mat", CAR_IMS)
    assert labels(find(str(devkit))) == DEVKIT_LABELS


@pytest.mark.parametrize("nested", ["car_data/car_data", "car_data", ""])
def test_class_folders_with_csv_are_found(kaggle, nested):
    if nested != "car_data/car_data":
        for split in ("train", "test"):
            (kaggle / nested).mkdir(exist_ok=True)
            os.replace(kaggle / "car_data/car_data" / split, kaggle / nested / split)
    listing = find(str(kaggle))
    assert listing.layout == "class_folders"
    assert listing.class_names == tuple(NAMES)
    assert labels(listing) == KAGGLE_LABELS
    assert listing.has_boxes
    assert all(image.box == box_of(image.id.split("/")[2]) for image in listing.images)
    assert listing.notes == ()
    assert [(row.found, row.missing, row.annotated) for row in listing.splits] == [
        (3, 0, 3),
        (2, 0, 2),
    ]


def test_class_folders_with_csv_lack_annotated_pictures(kaggle):
    shutil.rmtree(kaggle / "car_data/car_data/test")
    (kaggle / "car_data/car_data/train/Ape C-V 1998/00001.jpg").unlink()
    listing = find(str(kaggle))
    assert [(row.id, row.path) for row in listing.missing] == [
        ("test/Ape C-V 1998/00002", "car_data/car_data/test/Ape C-V 1998/00002.jpg"),
        ("test/Beetle 2012/00001", "car_data/car_data/test/Beetle 2012/00001.jpg"),
        ("train/Ape C-V 1998/00001", "car_data/car_data/train/Ape C-V 1998/00001.jpg"),
    ]
    assert listing.missing_by_split == {"train": 1, "test": 2}
    assert listing.class_names == tuple(NAMES)  # although two folders are left


def test_the_class_of_a_folder_and_that_of_the_csv_must_agree(kaggle):
    root = kaggle / "car_data/car_data/train"
    os.replace(root / "Cord 1936/00002.jpg", root / "Beetle 2012/00002.jpg")
    with pytest.raises(
        LayoutError, match=r"Beetle 2012/00002\.jpg .*'Beetle 2012'.*anno_train\.csv .*'Cord 1936'"
    ):
        find(str(kaggle))


def test_a_folder_that_names_csv_does_not_know_is_an_error(kaggle):
    touch(kaggle, "car_data/car_data/train/Delage/1.jpg")
    with pytest.raises(LayoutError, match=r"'Delage' has no line in names\.csv"):
        find(str(kaggle))


def test_numbers_without_names_are_an_error(kaggle):
    (kaggle / "names.csv").unlink()
    with pytest.raises(LayoutError, match=r"names\.csv, which names the classes of anno_train"):
        find(str(kaggle))


def test_boxes_of_one_split_only_are_left_out(kaggle):
    (kaggle / "anno_test.csv").unlink()
    listing = find(str(kaggle))
    assert not listing.has_boxes
    assert {image.box for image in listing.images} == {None}
    assert listing.notes == ("Boxes are left out, because anno_test.csv is not there.",)
    # without the numbers there is no order but that of code points
    assert listing.class_names == ("Ape C-V 1998", "Beetle 2012", "Cord 1936")


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "VAL"])
def test_any_class_folders_are_found(tmp_path, validation):
    touch(tmp_path, "train/b/1.JPG", "train/B/2.jpeg", "test/é/1.png", f"{validation}/b/1.webp")
    touch(tmp_path, "train/b/._1.jpg", "__MACOSX/train/b/1.jpg", "train/b/notes.txt")
    listing = find(str(tmp_path))
    assert listing.class_names == ("B", "b", "é")
    assert [(image.id, image.split, image.label, image.box) for image in listing.images] == [
        ("test/é/1", "test", 2, None),
        ("train/B/2", "train", 0, None),
        ("train/b/1", "train", 1, None),
        ("validation/b/1", "validation", 1, None),
    ]
    assert not listing.has_boxes
    assert listing.notes == ()
    assert [(row.split, row.annotated, row.official) for row in listing.splits] == [
        ("train", None, None),
        ("test", None, None),
        ("validation", None, None),
    ]


def test_class_folders_of_one_split_are_noted(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "test/readme.txt", "train/loose.jpg")
    (tmp_path / "val/a").mkdir(parents=True)
    listing = find(str(tmp_path))
    assert [row.split for row in listing.splits] == ["train"]
    assert listing.notes == (
        f"There is no test split: no picture at test/<class>/ in {tmp_path}.",
        "1 pictures outside the class_folders layout are left out, such as train/loose.jpg.",
    )


def test_two_folders_for_the_validation_split_are_an_error(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "valid/a/2.jpg")
    with pytest.raises(LayoutError, match="folders val and valid .* both the validation split"):
        find(str(tmp_path))


def test_two_files_with_one_id_in_a_class_folder_are_an_error(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/a/1.png")
    with pytest.raises(LayoutError, match=r"train/a/1: train/a/1\.jpg and train/a/1\.png"):
        find(str(tmp_path))


def test_a_folder_whose_name_tfds_would_change_is_refused(tmp_path):
    touch(tmp_path, "train/a /1.jpg")
    with pytest.raises(LayoutError, match="the class name 'a '.*rename it"):
        find(str(tmp_path))


def test_official_folders_keep_the_official_order_and_spelling(tmp_path):
    chosen = [195, 160, 0, 5]
    assert OFFICIAL_CLASS_NAMES[5] != sorted(OFFICIAL_CLASS_NAMES)[5]
    names = [OFFICIAL_CLASS_NAMES[label] for label in chosen] + ["Ram C/V Cargo Van Minivan 2012"]
    touch(tmp_path, *(f"train/{name.replace('/', '-')}/1.jpg" for name in names))
    listing = find(str(tmp_path))
    assert listing.class_names == OFFICIAL_CLASS_NAMES
    assert sorted(labels(listing).values()) == sorted(names)
    assert {image.label for image in listing.images} >= set(chosen)
    assert any("folders of 5 classes only; the class table has 196" in n for n in listing.notes)
    assert listing.splits[0].official == 8144
    touch(tmp_path, "train/Batmobile 1989/1.jpg")  # no longer that data set
    assert len(find(str(tmp_path)).class_names) == 6


def test_several_layouts_are_an_error_that_a_choice_mends(devkit):
    touch(devkit, "train/a/1.jpg")
    with pytest.raises(LayoutError, match="several layouts: devkit, class_folders; choose one"):
        find(str(devkit))
    assert labels(find(str(devkit), "devkit")) == DEVKIT_LABELS
    assert find(str(devkit), "class_folders").class_names == ("a",)


def test_annotation_files_of_another_layout_without_its_pictures_do_not_matter(devkit):
    shutil.rmtree(devkit / "cars_train")
    shutil.rmtree(devkit / "cars_test")
    touch(devkit, "train/a/1.jpg", "test/a/1.jpg")
    assert find(str(devkit)).layout == "class_folders"


def test_several_sets_of_class_folders_are_an_error(tmp_path):
    touch(tmp_path, "one/train/a/1.jpg", "two/train/a/1.jpg")
    with pytest.raises(LayoutError, match="below one, two; give one of these folders"):
        find(str(tmp_path))


@pytest.mark.parametrize("layout", ["auto", *layouts.LAYOUTS])
@pytest.mark.parametrize(
    "path", ["Beetle/1.jpg", "1.jpg", "train/1.jpg", "cars_annos.mat", "a.txt"]
)
def test_what_is_not_recognised_is_an_error_that_tells_what_was_looked_for(tmp_path, layout, path):
    if path.endswith(".mat"):
        write_cars_annos(tmp_path / path, CAR_IMS)
    else:
        touch(tmp_path, path)
    with pytest.raises(LayoutError) as error:
        find(str(tmp_path), layout)
    message = str(error.value)
    assert str(tmp_path) in message
    assert "looked " in message
    expected = {
        "devkit": "cars_train_annos.mat",
        "car_ims": "car_ims/*.jpg",
        "class_folders": "validation/<class>/*.jpg",
    }
    for name in layouts.LAYOUTS if layout == "auto" else [layout]:
        assert expected[name] in message
    if not path.endswith(".txt"):
        assert path in message  # what was found instead


def test_annotations_that_name_none_of_the_pictures_are_an_error(devkit):
    for path in [*devkit.glob("cars_*/*.jpg")]:
        path.rename(path.with_name("x" + path.name))
    with pytest.raises(LayoutError, match="no annotated picture of the devkit layout"):
        find(str(devkit))


def test_a_layout_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(LayoutError, match="'devkid'; choose one of auto, devkit, car_ims, class"):
        find(str(tmp_path), "devkid")


def test_the_same_is_found_in_a_bucket_with_one_listing(devkit, monkeypatch):
    class Store(LocalFileSystem):
        """Objects named store://… whose content lies below the local folder."""

        listings = 0

        @classmethod
        def scheme(cls):
            return "store"

        def has_dirs(self):
            return False

        def _list(self, dir_or_prefix):
            Store.listings += 1
            for path in sorted(devkit.parent.rglob("*")):
                name = f"store://{path.relative_to(devkit.parent).as_posix()}"
                if path.is_file() and name.startswith(dir_or_prefix):
                    yield FileMetadata(name, path.stat().st_size)

        def open(self, path, *args, **kwargs):
            return (devkit.parent / path.removeprefix("store://")).open("rb")

        def metadata(self, path):
            raise AssertionError("no file is looked up by itself")

        exists = size = last_updated = metadata

    local, remote = find(str(devkit)), find("store://data/")
    assert Store.listings == 1
    assert labels(remote) == labels(local)
    assert [image.relative_path for image in remote.images] == [
        image.relative_path for image in local.images
    ]
    picture = by_id(remote)["train/00001"]
    assert picture.path == "store://data/cars_train/00001.jpg"
    assert picture.modified == 0.0


def test_workers_import_neither_scipy_nor_rich():
    code = "import sys, pipeline.layouts; print({'scipy', 'rich'} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "set()"


# --- the genuine files

DATA = Path(
    os.environ.get("STANFORD_CARS_DATA")
    or Path(__file__).resolve().parents[2].parent / "shared" / "data"
)
genuine = [
    pytest.mark.genuine,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the genuine files are not in {DATA}"),
]


@pytest.fixture(scope="module")
def official():
    return find(str(DATA / "stanford_cars"))


class TestGenuine:
    pytestmark = genuine

    def test_devkit(self, official):
        listing = official
        assert listing.class_names == OFFICIAL_CLASS_NAMES
        assert len(listing.images) == 230
        assert [
            (row.split, row.found + row.missing, row.annotated, row.official)
            for row in listing.splits
        ] == [("train", 8144, 8144, 8144), ("test", 8041, 8041, 8041)]
        assert len(listing.missing) == 8144 + 8041 - 230
        assert listing.notes == ()

    def test_car_ims_is_the_same_data_set(self, official, monkeypatch):
        annos = DATA / "car_ims_layout/cars_annos.mat"
        names = [f"car_ims/{number:06d}.jpg" for number in range(1, 16186)]
        files = [File(f"/{name}", name, 1, 0.0) for name in names]
        files.append(File(str(annos), annos.name, annos.stat().st_size, 0.0))
        monkeypatch.setattr(folders, "list_files", lambda folder, extensions: files)
        listing = find("/")
        assert listing.class_names == OFFICIAL_CLASS_NAMES
        assert [(row.split, row.found, row.official) for row in listing.splits] == [
            ("train", 8144, 8144),
            ("test", 8041, 8041),
        ]
        assert listing.missing == ()
        by_row = {(image.split, image.label, image.box) for image in listing.images}
        assert {(image.split, image.label, image.box) for image in official.images} <= by_row

    def test_kaggle_csv_is_the_same_data_set(self, official, tmp_path):
        for name in ("anno_train.csv", "anno_test.csv", "names.csv"):
            os.symlink(DATA / "kaggle_annotations" / name, tmp_path / name)
        for image in official.images:
            folder = OFFICIAL_CLASS_NAMES[image.label].replace("/", "-")
            path = tmp_path / "car_data/car_data" / image.split / folder / Path(image.path).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(image.path)
        listing = find(str(tmp_path))
        assert listing.class_names == OFFICIAL_CLASS_NAMES
        assert listing.splits == official.splits
        stem = {image.id: image for image in official.images}
        assert len(listing.images) == len(official.images)
        for image in listing.images:
            same = stem[f"{image.split}/{image.id.split('/')[2]}"]
            assert (image.label, image.box, image.size) == (same.label, same.box, same.size)
        assert any(note.startswith("There are folders of ") for note in listing.notes)

    def test_class_folders_get_the_official_order(self):
        listing = find(str(DATA / "car_crops"))
        assert listing.class_names == OFFICIAL_CLASS_NAMES
        assert [(row.split, row.found) for row in listing.splits] == [
            ("train", 6487),
            ("test", 1657),
        ]
        assert not listing.has_boxes
        assert listing.notes == ()
        for image in listing.images:
            folder = image.relative_path.split("/")[1]
            assert listing.class_names[image.label].replace("/", "-") == folder
        sorted_names = sorted(folder.name for folder in (DATA / "car_crops/train").iterdir())
        misnumbered = sum(
            ours.replace("/", "-") != theirs
            for ours, theirs in zip(OFFICIAL_CLASS_NAMES, sorted_names, strict=True)
        )
        assert misnumbered == 143

    def test_all_together_are_ambiguous(self):
        with pytest.raises(LayoutError, match="fits several layouts: devkit, class_folders"):
            find(str(DATA))


def test_there_are_196_official_names():
    assert len(set(OFFICIAL_CLASS_NAMES)) == len(OFFICIAL_CLASS_NAMES) == 196
    assert [name for name in OFFICIAL_CLASS_NAMES if "/" in name] == [
        "Ram C/V Cargo Van Minivan 2012"
    ]
