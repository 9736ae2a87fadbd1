import collections
import csv
import dataclasses
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline import drawing, layouts, sample
from pipeline.drawing import canvas
from pipeline.sample import CLASS_NAMES, FLAWS, LAYOUTS, SampleOptions, draw

GENUINE = Path(
    os.environ.get(
        "STANFORD_CARS_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)
SMALL = SampleOptions(train=2, test=1, width=(64, 96), height=(48, 72), flaws=True)


def options_for(layout, **changes):
    return dataclasses.replace(SMALL, layout=layout, **changes)


def digests(folder):
    """Relative path to sha256, for every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The small sample in every layout: layout to (folder, summary)."""
    samples = {}
    for layout in LAYOUTS:
        folder = tmp_path_factory.mktemp(layout) / "cars"
        validation = 1 if layout == "folders" else 0
        samples[layout] = folder, draw(str(folder), options_for(layout, validation=validation))
    return samples


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "torchvision"}, "--layout is 'torchvision'; choose one of devkit, car_ims"),
        ({"train": 0}, "--train is 0; it must be 1 or more"),
        ({"test": 0}, "--test is 0; it must be 1 or more"),
        ({"validation": -1}, "--validation is -1; it must be 0 or more"),
        ({"validation": 1, "layout": "kaggle"}, "the kaggle layout has no validation split"),
        ({"seed": -1}, "--seed is -1"),
        ({"width": (320, 160)}, "width is 320 to 160 pixels"),
        ({"height": (10, 160)}, "height is 10 to 160 pixels; it must be rising, from 48 on"),
    ],
)
def test_impossible_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SampleOptions(**changes)


def test_calls_back_once_a_picture(tmp_path):
    options = options_for("folders", train=1, test=1, validation=1)
    calls = []
    draw(str(tmp_path / "cars"), options, lambda: calls.append(None))
    # One flaw cannot be drawn: without annotations no file can be missing.
    assert len(calls) == options.pictures == 3 * len(CLASS_NAMES) + len(FLAWS) - 1


# ----------------------------------------------------------------------------------- the same bytes


def test_the_same_options_give_the_same_bytes(drawn, tmp_path):
    folder, _ = drawn["devkit"]
    draw(str(tmp_path / "again"), options_for("devkit"))
    assert digests(tmp_path / "again") == digests(folder)


def test_another_seed_draws_other_pictures(drawn, tmp_path):
    folder, _ = drawn["devkit"]
    draw(str(tmp_path / "other"), options_for("devkit", seed=1, flaws=False))
    same = set(digests(folder).values()) & set(digests(tmp_path / "other").values())
    assert same == {digests(folder)["devkit/cars_meta.mat"]}


def test_no_picture_is_in_two_splits(drawn):
    folder, _ = drawn["folders"]
    splits = collections.defaultdict(set)
    for path, digest in digests(folder).items():
        if path != sample.MARKER:
            splits[path.split("/")[0]].add(digest)
    assert len(splits) == 3
    assert len(set.union(*splits.values())) == sum(len(split) for split in splits.values())


def test_every_layout_holds_the_same_pictures_under_the_same_class_names(drawn):
    def contents(layout):
        folder, _ = drawn[layout]
        listing = layouts.find(str(folder))
        return {
            (
                image.split,
                listing.class_names[image.label],
                image.box,
                Path(image.path).read_bytes(),
            )
            for image in listing.images
        }

    devkit = contents("devkit")
    assert len(devkit) == 10 * (SMALL.train + SMALL.test) + len(FLAWS) - 1
    assert contents("car_ims") == devkit
    assert contents("kaggle") == devkit
    without_boxes = {(split, name.replace("/", "-"), data) for split, name, _, data in devkit}
    folders = {
        (split, name, data) for split, name, _, data in contents("folders") if split != "validation"
    }
    # There one flaw fewer moves the doubled picture to another class.
    assert len(folders ^ without_boxes) <= 2 * len(FLAWS)
    assert len(folders & without_boxes) >= 10 * (SMALL.train + SMALL.test)


# ------------------------------------------------------------------------------- folders of others


def test_a_second_call_has_nothing_to_do(drawn):
    folder, summary = drawn["kaggle"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = draw(str(folder), options_for("kaggle"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert again == dataclasses.replace(summary, drawn=False)
    assert "nothing to do" in str(again)
    assert "nothing to do" not in str(summary)


def test_other_options_are_refused_with_the_difference(drawn):
    folder, _ = drawn["kaggle"]
    with pytest.raises(ValueError, match=r"kaggle\d+/cars was .*\(seed was 0 and is now 5\); give"):
        draw(str(folder), options_for("kaggle", seed=5))


def test_a_sample_of_another_version_is_refused(tmp_path, monkeypatch):
    options = options_for("devkit", train=1, test=1)
    draw(str(tmp_path / "cars"), options)
    monkeypatch.setattr(sample, "FORMAT_VERSION", sample.FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match="another version"):
        draw(str(tmp_path / "cars"), options)


def test_a_folder_that_is_not_a_sample_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not empty and has no SAMPLE\.json.*give a new folder"):
        draw(str(tmp_path), SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_marker_is_named(tmp_path):
    (tmp_path / "SAMPLE.json").write_text("{")
    with pytest.raises(ValueError, match=r"SAMPLE\.json is not JSON"):
        draw(str(tmp_path), SMALL)


def test_a_remote_folder_is_refused():
    with pytest.raises(ValueError, match="gs://bucket/cars is not a local folder"):
        draw("gs://bucket/cars", SMALL)


def test_an_interrupted_call_is_finished_by_the_next(drawn, tmp_path):
    folder, _ = drawn["car_ims"]

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(str(tmp_path / "cars"), options_for("car_ims"), interrupt)
    assert draw(str(tmp_path / "cars"), options_for("car_ims")).drawn
    assert digests(tmp_path / "cars") == digests(folder)


# ------------------------------------------------------------------------------------- the layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_finds_what_the_summary_says(drawn, layout):
    folder, summary = drawn[layout]
    listing = layouts.find(str(folder))
    assert {row.split: row.found for row in listing.splits} == summary.files
    assert [reject.id for reject in listing.missing] == [
        id for id, flaw in summary.flaws.items() if flaw == "missing file"
    ]
    ids = {image.id for image in listing.images} | {reject.id for reject in listing.missing}
    assert set(summary.flaws) <= ids
    assert not listing.notes
    if layout == "folders":
        assert not listing.has_boxes
        assert list(listing.class_names) == sorted(n.replace("/", "-") for n in CLASS_NAMES)
    else:
        assert listing.has_boxes
        assert listing.class_names == CLASS_NAMES


def test_one_class_name_has_a_slash_and_the_order_is_not_alphabetical():
    assert sum("/" in name for name in CLASS_NAMES) == 1
    assert list(CLASS_NAMES) != sorted(CLASS_NAMES)


def test_the_devkit_reads_as_torchvision_reads_it(drawn):
    """Does what torchvision.datasets.StanfordCars does, in its own few lines."""
    folder, _ = drawn["devkit"]
    meta = scipy.io.loadmat(folder / "devkit" / "cars_meta.mat", squeeze_me=True)
    assert meta["class_names"].tolist() == list(CLASS_NAMES)
    for images, annotations in (
        ("cars_train", "devkit/cars_train_annos.mat"),
        ("cars_test", "cars_test_annos_withlabels.mat"),
    ):
        table = scipy.io.loadmat(folder / annotations, squeeze_me=True)["annotations"]
        names = [str(folder / images / row["fname"]) for row in table]
        labels = [int(row["class"]) - 1 for row in table]
        assert sum(os.path.exists(name) for name in names) >= len(names) - 1
        assert set(labels) == set(range(10))


def test_unlabeled_test_annotations_differ_in_the_class_alone(drawn):
    folder, _ = drawn["devkit"]
    with_labels = scipy.io.loadmat(folder / "cars_test_annos_withlabels.mat")["annotations"]
    without = scipy.io.loadmat(folder / "devkit" / "cars_test_annos.mat")["annotations"]
    assert set(with_labels.dtype.names) - set(without.dtype.names) == {"class"}
    for name in without.dtype.names:
        assert [str(v) for v in with_labels[name][0]] == [str(v) for v in without[name][0]]


def test_csv_files_agree_with_the_devkit(drawn):
    folder, _ = drawn["kaggle"]
    devkit, _ = drawn["devkit"]
    for split, annotations in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        with open(folder / f"anno_{split}.csv", newline="") as file:
            rows = list(csv.reader(file))
        table = scipy.io.loadmat(devkit / annotations, squeeze_me=True)["annotations"]
        fields = ("fname", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")
        assert rows == [[str(row[field]) for field in fields] for row in table]


def shape_of(mat_file):
    """Variables of a .mat file: for each its shape's rank, its fields and their types."""
    found = {}
    for name, value in scipy.io.loadmat(mat_file).items():
        if not name.startswith("__"):
            first = value[0, 0]
            fields = value.dtype.names or ()
            parts = [first[field] for field in fields] or [first]
            kinds = [(part.dtype.kind, part.ndim) for part in parts]
            found[name] = (value.shape[0], value.ndim, fields, kinds)
    return found


@pytest.mark.genuine
@pytest.mark.skipif(not GENUINE.is_dir(), reason=f"no genuine files at {GENUINE}")
@pytest.mark.parametrize(
    ("layout", "path", "genuine"),
    [
        ("devkit", "devkit/cars_meta.mat", "stanford_cars/devkit/cars_meta.mat"),
        ("devkit", "devkit/cars_train_annos.mat", "stanford_cars/devkit/cars_train_annos.mat"),
        ("devkit", "devkit/cars_test_annos.mat", "stanford_cars/devkit/cars_test_annos.mat"),
        (
            "devkit",
            "cars_test_annos_withlabels.mat",
            "stanford_cars/cars_test_annos_withlabels.mat",
        ),
        ("car_ims", "cars_annos.mat", "car_ims_layout/cars_annos.mat"),
    ],
)
def test_mat_files_have_the_genuine_structure(drawn, layout, path, genuine):
    folder, _ = drawn[layout]
    assert shape_of(folder / path) == shape_of(GENUINE / genuine)


# --------------------------------------------------------------------------------------- the flaws


@pytest.fixture
def flawed(drawn):
    """Devkit sample: flaw to (path of the file, its row of annotations)."""
    folder, summary = drawn["devkit"]
    table = scipy.io.loadmat(folder / "devkit" / "cars_train_annos.mat", squeeze_me=True)
    rows = {row["fname"]: row for row in table["annotations"]}
    return {
        flaw: (folder / f"cars_{id}.jpg", rows[f"{id.split('/')[1]}.jpg"])
        for id, flaw in summary.flaws.items()
    }


def test_each_flaw_is_there_once(flawed):
    assert set(flawed) == set(FLAWS)


def test_bad_files_are_bad(flawed):
    with (
        pytest.raises(OSError, match="truncated"),
        Image.open(flawed["truncated JPEG"][0]) as image,
    ):
        image.load()
    assert flawed["empty file"][0].stat().st_size == 0
    with pytest.raises(UnidentifiedImageError):
        Image.open(flawed["text file"][0])
    assert not flawed["missing file"][0].exists()


@pytest.mark.parametrize(
    ("flaw", "format", "mode", "progressive", "orientation"),
    [
        ("gray JPEG", "JPEG", "L", False, None),
        ("CMYK JPEG", "JPEG", "CMYK", False, None),
        ("progressive JPEG", "JPEG", "RGB", True, None),
        ("PNG named .jpg", "PNG", "RGB", False, None),
        ("EXIF orientation 6", "JPEG", "RGB", False, 6),
        ("EXIF orientation 0", "JPEG", "RGB", False, 0),
    ],
)
def test_odd_files_are_odd_as_named(flawed, flaw, format, mode, progressive, orientation):
    with Image.open(flawed[flaw][0]) as image:
        image.load()
        found = (image.format, image.mode, "progressive" in image.info)
        assert found == (format, mode, progressive)
        assert image.getexif().get(0x0112) == orientation


def test_a_turned_picture_has_its_box_in_the_stored_raster(flawed):
    path, row = flawed["EXIF orientation 6"]
    with Image.open(path) as image:
        width, height = image.size
        shown_width, shown_height = ImageOps.exif_transpose(image).size
    assert (shown_width, shown_height) == (height, width)
    assert shown_width > shown_height  # the camera's pictures are landscapes
    assert row["bbox_x2"] <= width
    assert shown_height < row["bbox_y2"] <= height  # it fits the stored raster alone
    assert row["bbox_y2"] - row["bbox_y1"] > row["bbox_x2"] - row["bbox_x1"]  # a car on its nose


def test_the_doubled_picture_has_two_labels(flawed, drawn):
    folder, _ = drawn["devkit"]
    path, _ = flawed["same picture under another label"]
    table = scipy.io.loadmat(folder / "devkit" / "cars_train_annos.mat", squeeze_me=True)
    same = [
        other
        for other in table["annotations"]
        if (file := folder / "cars_train" / other["fname"]).exists()
        and file.read_bytes() == path.read_bytes()
    ]
    assert len(same) == 2
    assert same[0]["class"] != same[1]["class"]
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    assert [same[0][f] for f in fields] == [same[1][f] for f in fields]


def test_without_flaws_all_pictures_are_plain(tmp_path):
    summary = draw(str(tmp_path / "cars"), options_for("devkit", train=1, test=1, flaws=False))
    assert summary.flaws == {}
    for path in (tmp_path / "cars").rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert SMALL.width[0] <= image.width <= SMALL.width[1]
            assert SMALL.height[0] <= image.height <= SMALL.height[1]


# ------------------------------------------------------------------------------------- the drawing


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_the_box_is_tight_around_the_visible_car(name, monkeypatch):
    """Draws the car in magenta, finds magenta in the picture, and compares."""

    def magenta(self):
        _, cover = resolve(self)
        return np.stack([cover, 0 * cover, cover]), cover

    resolve = canvas.Canvas.resolve
    monkeypatch.setattr(canvas.Canvas, "resolve", magenta)
    monkeypatch.setattr(drawing, "OCCLUDED", 0.0)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        picture = drawing.draw_car(sample.MODELS[name], rng, 200, 150)
        red, green, blue = picture.pixels.astype(int).transpose(2, 0, 1)
        seen = (red - green > 90) & (blue - green > 90)
        columns, rows = seen.any(0).nonzero()[0], seen.any(1).nonzero()[0]
        expected = columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1
        assert np.abs(np.subtract(picture.box, expected)).max() <= 1


def test_a_box_has_inclusive_ends_and_starts_at_one():
    mask = np.zeros((5, 7), bool)
    mask[0, 2] = mask[4, 6] = True
    assert drawing.box_of(mask) == (3, 1, 7, 5)
    assert drawing.box_of(np.ones((5, 7), bool)) == (1, 1, 7, 5)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_a_car_is_whole_and_the_picture_rich_in_colours(name):
    for seed in range(4):
        picture = drawing.draw_car(
            sample.MODELS[name], np.random.default_rng(seed), width=160, height=120
        )
        x1, y1, x2, y2 = picture.box
        assert 1 < x1 < x2 < 160  # the frame cuts nothing off
        assert 1 < y1 < y2 < 120
        assert (x2 - x1 + 1) * (y2 - y1 + 1) > 0.12 * 160 * 120
        assert picture.mask[y1 - 1 : y2, x1 - 1 : x2].mean() > 0.4
        # Quantizing to 32 colours must have something to do.
        assert len(np.unique(picture.pixels.reshape(-1, 3), axis=0)) > 2000


def test_a_picture_depends_on_its_generator_alone():
    body = sample.MODELS[CLASS_NAMES[0]]
    first = drawing.draw_car(body, np.random.default_rng(3), 96, 72)
    drawing.draw_car(sample.MODELS[CLASS_NAMES[5]], np.random.default_rng(4), 120, 90)
    again = drawing.draw_car(body, np.random.default_rng(3), 96, 72)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.mask, again.mask)


def test_paint_does_not_give_the_class_away():
    """The most likely class of each paint is right for less than half of all cars."""
    shares = np.zeros((len(CLASS_NAMES), len(drawing.bodies.PAINTS)))
    paints = list(drawing.bodies.PAINTS)
    for label, name in enumerate(CLASS_NAMES):
        usual = sample.MODELS[name].paints
        for paint in usual:
            shares[label, paints.index(paint)] += 0.8 / len(usual)
        shares[label] += 0.2 / len(paints)
    assert shares.max(0).sum() / len(CLASS_NAMES) < 0.5
    assert ((shares > 0).sum(0) == len(CLASS_NAMES)).all()


def test_encoded_pictures_are_near_the_drawn_ones(drawn):
    """A plain file decodes to what was drawn, within what JPEG does."""
    options = options_for("devkit")
    plan = next(plan for plan in sample._plan(options) if plan.flaw is None)
    content, _ = sample._picture(plan, options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "JPEG"
    folder, _ = drawn["devkit"]
    assert (folder / sample._path(plan, "devkit")).read_bytes() == content
