"""Draws a small data set of cars and writes it in one of the layouts of the genuine one.

The ten models are made up; their classes differ in the shape of the body, and only partly in paint.
On request the data set has the flaws of genuine copies: bad files, odd files, a missing one.
"""

import dataclasses
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from pipeline.drawing import Drawing, bodies, draw_car

Layout = Literal["devkit", "car_ims", "kaggle", "folders"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

# In the order of the class table, which like the genuine one is not quite alphabetical.
MODELS = {
    "Alder Pip Hatchback 2012": bodies.HATCHBACK,
    "Corvane Meridian Sedan 2012": bodies.SEDAN,
    "Fara Strale Coupe 2012": bodies.COUPE,
    "Fara Strale Convertible 2011": bodies.CONVERTIBLE,
    "Granite Bighorn Crew Cab 2010": bodies.PICKUP,
    "Granite Ridge SUV 2012": bodies.SUV,
    "Harlan Metro Bus 2009": bodies.BUS,
    "Marten C/V Cargo Van 2012": bodies.CARGO_VAN,
    "Norden Family Minivan 2007": bodies.MINIVAN,
    "Ostler Sentinel SUV 2000": bodies.OFFROADER,
}
CLASS_NAMES = tuple(MODELS)

MARKER = "SAMPLE.json"
FORMAT_VERSION = 1  # raise it when the same options would draw other files
SPLITS = ("train", "test", "validation")
SMALLEST_SIDE = 48

MISSING_FILE = "missing file"
SAME_PICTURE = "same picture under another label"
FLAWS = (
    "truncated JPEG",
    "empty file",
    "text file",
    MISSING_FILE,
    "gray JPEG",
    "CMYK JPEG",
    "progressive JPEG",
    "PNG named .jpg",
    "EXIF orientation 6",
    "EXIF orientation 0",
    SAME_PICTURE,
)
# Version 5 .mat files begin with 116 bytes of text; SciPy writes the time of day there.
_MAT_HEADER = b"MATLAB 5.0 MAT-file, drawn sample".ljust(116)
_ORIENTATION = 0x0112  # EXIF tag


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """What to draw. The same options give the same bytes.

    Attributes:
        layout: `devkit`, `car_ims`, `kaggle` (class folders with CSV files) or `folders`.
        train: training pictures of each of the ten classes.
        test: test pictures of each class.
        validation: validation pictures of each class; `folders` only.
        width: smallest and largest width of a picture, in pixels.
        height: smallest and largest height.
        seed: other seeds draw other pictures.
        flaws: whether to add one training picture with each of `FLAWS`.

    Raises:
        ValueError: when made, if a value or a combination is impossible.
    """

    layout: Layout = "devkit"
    train: int = 100
    test: int = 30
    validation: int = 0
    width: tuple[int, int] = (160, 320)
    height: tuple[int, int] = (120, 240)
    seed: int = 0
    flaws: bool = False

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"--layout is {self.layout!r}; choose one of {', '.join(LAYOUTS)}")
        for flag, least in (("train", 1), ("test", 1), ("validation", 0), ("seed", 0)):
            if getattr(self, flag) < least:
                raise ValueError(f"--{flag} is {getattr(self, flag)}; it must be {least} or more")
        if self.validation and self.layout != "folders":
            raise ValueError(
                f"--validation is {self.validation}, but the {self.layout} layout has no "
                "validation split; use --layout=folders"
            )
        for side in ("width", "height"):
            low, high = getattr(self, side)
            if not SMALLEST_SIDE <= low <= high:
                raise ValueError(
                    f"{side} is {low} to {high} pixels; it must be rising, from {SMALLEST_SIDE} on"
                )

    @property
    def pictures(self) -> int:
        """Number of pictures in the data set, those with flaws included."""
        per_class = self.train + self.test + self.validation
        return per_class * len(CLASS_NAMES) + len(self._flaws)

    @property
    def _flaws(self) -> tuple[str, ...]:
        if not self.flaws:
            return ()
        # Without annotations, nobody can tell that a file is missing.
        return tuple(f for f in FLAWS if self.layout != "folders" or f != MISSING_FILE)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a data set holds.

    Attributes:
        output_dir: its folder.
        layout: its layout.
        files: picture files written for each split.
        flaws: id of each flawed picture, in the manner of `pipeline.layouts`, to what it has.
        drawn: whether this call drew it, or an earlier one with the same options.
    """

    output_dir: str
    layout: Layout
    files: Mapping[str, int]
    flaws: Mapping[str, str]
    drawn: bool

    def __str__(self) -> str:
        files = ", ".join(f"{count:,} {split}" for split, count in self.files.items())
        lines = [
            f"{self.output_dir}: {files} pictures of {len(CLASS_NAMES)} classes, "
            f"{self.layout} layout"
            + ("" if self.drawn else "; drawn before with the same options, nothing to do")
        ]
        lines += [f"  {id}: {flaw}" for id, flaw in self.flaws.items()]
        return "\n".join(lines)


class _Plan(NamedTuple):
    """A picture to draw: what of, and under which number."""

    split: str
    number: int  # 1-based; in its split, or in the whole data set for car_ims
    label: int  # 0-based
    key: tuple[int, ...]  # what its randomness comes from
    flaw: str | None


class _Row(NamedTuple):
    """A row of annotation."""

    plan: _Plan
    box: tuple[int, int, int, int]


def draw(
    output_dir: str, options: SampleOptions, on_picture: Callable[[], None] | None = None
) -> Summary:
    """Draws a data set into a folder.

    Args:
        output_dir: a local folder; new, empty, or one that an earlier call drew.
        options: what to draw.
        on_picture: called after each of `options.pictures` pictures.

    Returns:
        A summary. If the same options drew this folder before, nothing is written.

    Raises:
        ValueError: if the folder holds anything else.
    """
    if "://" in output_dir:
        raise ValueError(f"{output_dir} is not a local folder; draw the sample here and copy it")
    before = _drawn_before(output_dir, options)
    if before is not None:
        return before
    _write_marker(output_dir, options, summary=None)
    rows = []
    for plan in _plan(options):
        content, box = _picture(plan, options)
        if plan.flaw != MISSING_FILE:
            _write(os.path.join(output_dir, _path(plan, options.layout)), content)
        rows.append(_Row(plan, box))
        if on_picture is not None:
            on_picture()
    for name, content in _annotations(rows, options.layout).items():
        _write(os.path.join(output_dir, name), content)
    files = {
        split: sum(row.plan.split == split and row.plan.flaw != MISSING_FILE for row in rows)
        for split in SPLITS
    }
    summary = Summary(
        output_dir=output_dir,
        layout=options.layout,
        files={split: count for split, count in files.items() if count},
        flaws={_id(row.plan, options.layout): row.plan.flaw for row in rows if row.plan.flaw},
        drawn=True,
    )
    _write_marker(output_dir, options, summary)
    return summary


def _as_json(options: SampleOptions) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(options)))  # tuples to lists
    return value


def _write_marker(output_dir: str, options: SampleOptions, summary: Summary | None) -> None:
    """Writes the file by which a later call knows this folder; `summary` says it is complete."""
    marker = {
        "format_version": FORMAT_VERSION,
        "options": _as_json(options),
        "complete": summary is not None,
        "files": dict(summary.files) if summary else {},
        "flaws": dict(summary.flaws) if summary else {},
    }
    path = os.path.join(output_dir, MARKER)
    _write(path + ".new", json.dumps(marker, indent=2).encode() + b"\n")
    os.replace(path + ".new", path)


def _drawn_before(output_dir: str, options: SampleOptions) -> Summary | None:
    """Returns the summary of an earlier, complete call; None if there is all or part to draw."""
    if not os.path.isdir(output_dir) or not os.listdir(output_dir):
        return None
    remedy = "give a new folder, or delete this one"
    try:
        with open(os.path.join(output_dir, MARKER), encoding="utf-8") as file:
            marker = json.load(file)
    except FileNotFoundError:
        raise ValueError(
            f"{output_dir} is not empty and has no {MARKER}, so it is not a drawn sample; {remedy}"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{output_dir}/{MARKER} is not JSON ({error}); {remedy}") from error
    if marker.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{output_dir} was drawn by another version of the program; {remedy}")
    wanted, found = _as_json(options), marker["options"]
    if wanted != found:
        changes = ", ".join(
            f"{name} was {found.get(name)} and is now {value}"
            for name, value in wanted.items()
            if value != found.get(name)
        )
        raise ValueError(f"{output_dir} was drawn with other options ({changes}); {remedy}")
    if not marker["complete"]:
        return None
    return Summary(output_dir, options.layout, marker["files"], marker["flaws"], drawn=False)


def _write(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


# ---------------------------------------------------------------------------------------- pictures


def _plan(options: SampleOptions) -> list[_Plan]:
    """Lists all pictures in the order of their numbers.

    As in the genuine data set, the split numbering is shuffled, and car_ims is sorted by class and
    inside a class by split.
    """
    plans = []
    for split_index, split in enumerate(SPLITS):
        each = getattr(options, split)
        drawn: list[tuple[int, tuple[int, ...], str | None]] = [
            (label, (options.seed, split_index, label, i), None)
            for label in range(len(CLASS_NAMES))
            for i in range(each)
        ]
        if split == "train":
            for i, flaw in enumerate(options._flaws):
                label = i % len(CLASS_NAMES)
                # The doubled picture is the first one of the class before.
                key = (label - 1, 0) if flaw == SAME_PICTURE else (label, each + i)
                key = (key[0] % len(CLASS_NAMES), key[1])
                drawn.append((label, (options.seed, split_index, *key), flaw))
        order = np.random.default_rng((options.seed, split_index)).permutation(len(drawn))
        plans += [_Plan(split, n, *drawn[place]) for n, place in enumerate(order.tolist(), 1)]
    if options.layout == "car_ims":
        plans.sort(key=lambda plan: (plan.label, SPLITS.index(plan.split), plan.number))
        plans = [plan._replace(number=number) for number, plan in enumerate(plans, 1)]
    return plans


def _folder(label: int) -> str:
    """Returns the name of a class's folder; no file system allows a slash in it."""
    return CLASS_NAMES[label].replace("/", "-")


def _path(plan: _Plan, layout: Layout) -> str:
    """Returns the path of a picture, relative to the data set."""
    if layout == "devkit":
        return f"cars_{plan.split}/{plan.number:05d}.jpg"
    if layout == "car_ims":
        return f"car_ims/{plan.number:06d}.jpg"
    nest = "car_data/car_data/" if layout == "kaggle" else ""
    return f"{nest}{plan.split}/{_folder(plan.label)}/{plan.number:05d}.jpg"


def _id(plan: _Plan, layout: Layout) -> str:
    """Returns the id that `pipeline.layouts` gives to a picture."""
    if layout == "devkit":
        return f"{plan.split}/{plan.number:05d}"
    if layout == "car_ims":
        return f"{plan.number:06d}"
    return f"{plan.split}/{_folder(plan.label)}/{plan.number:05d}"


def _picture(plan: _Plan, options: SampleOptions) -> tuple[bytes, tuple[int, int, int, int]]:
    """Returns the content of a picture file, and the car's box in the raster as stored."""
    rng = np.random.default_rng(plan.key)
    width = int(rng.integers(options.width[0], options.width[1] + 1))
    shape = rng.choice((0.625, 2 / 3, 0.75))
    height = int(np.clip(round(width * shape), *options.height))
    quality = int(rng.integers(82, 94))
    # In a doubled picture the car is not of its label's class.
    drawing = draw_car(MODELS[CLASS_NAMES[plan.key[2]]], rng, width, height)
    if plan.flaw == "EXIF orientation 6":  # the camera lay on its side: show turned clockwise
        drawing = Drawing(np.rot90(drawing.pixels), np.rot90(drawing.mask))
    return _encode(drawing.pixels, quality, plan.flaw), drawing.box


def _encode(pixels: np.ndarray, quality: int, flaw: str | None) -> bytes:
    """Returns uint8 (H, W, 3) as a JPEG file, or with a flaw."""
    if flaw == "empty file":
        return b""
    if flaw == "text file":
        return b"<html><body>404 Not Found</body></html>\n"
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    if flaw == "PNG named .jpg":
        image.save(file, "PNG")
        return file.getvalue()
    settings: dict[str, Any] = {"quality": quality}
    if flaw in ("gray JPEG", "CMYK JPEG"):
        image = image.convert("L" if flaw == "gray JPEG" else "CMYK")
    if flaw == "progressive JPEG":
        settings["progressive"] = True
    if flaw in ("EXIF orientation 6", "EXIF orientation 0"):
        exif = Image.Exif()
        exif[_ORIENTATION] = int(flaw[-1])
        settings["exif"] = exif
    image.save(file, "JPEG", **settings)
    content = file.getvalue()
    return content[: len(content) // 2] if flaw == "truncated JPEG" else content


# ------------------------------------------------------------------------------------- annotations


def _annotations(rows: Sequence[_Row], layout: Layout) -> dict[str, bytes]:
    """Returns the annotation files of a layout: relative path to content."""
    train = [row for row in rows if row.plan.split == "train"]
    test = [row for row in rows if row.plan.split == "test"]
    if layout == "devkit":
        return {
            "devkit/cars_meta.mat": _mat({"class_names": _cells(CLASS_NAMES)}),
            "devkit/cars_train_annos.mat": _mat({"annotations": _split_annotations(train)}),
            "devkit/cars_test_annos.mat": _mat(
                {"annotations": _split_annotations(test, labels=False)}
            ),
            "cars_test_annos_withlabels.mat": _mat({"annotations": _split_annotations(test)}),
        }
    if layout == "car_ims":
        return {
            "cars_annos.mat": _mat(
                {"annotations": _joint_annotations(rows), "class_names": _cells(CLASS_NAMES)}
            )
        }
    if layout == "kaggle":
        return {
            "anno_train.csv": _csv(train),
            "anno_test.csv": _csv(test),
            "names.csv": "".join(f"{name}\n" for name in CLASS_NAMES).encode(),
        }
    return {}


def _csv(rows: Sequence[_Row]) -> bytes:
    """Returns lines of file name, x1, y1, x2, y2 and 1-based class, without a header."""
    return "".join(
        f"{row.plan.number:05d}.jpg,{','.join(map(str, row.box))},{row.plan.label + 1}\n"
        for row in rows
    ).encode()


def _integer(value: int) -> np.ndarray:
    """Returns a (1, 1) array of the smallest unsigned type, as MATLAB's authors stored it."""
    return np.array([[value]], np.min_scalar_type(value))


def _cells(texts: Sequence[str]) -> np.ndarray:
    """Returns a 1×N cell array of strings."""
    cells = np.empty((1, len(texts)), object)
    cells[0] = texts
    return cells


def _structs(columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """Returns a 1×N struct array, one field a column, in the columns' order."""
    count = len(next(iter(columns.values())))
    array = np.empty((1, count), [(name, object) for name in columns])
    for name, values in columns.items():
        field = np.empty(count, object)
        for place, value in enumerate(values):
            field[place] = value
        array[name][0] = field
    return array


def _boxes(rows: Sequence[_Row]) -> dict[str, Sequence[Any]]:
    names = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    return {name: [_integer(row.box[i]) for row in rows] for i, name in enumerate(names)}


def _split_annotations(rows: Sequence[_Row], labels: bool = True) -> np.ndarray:
    """Returns the struct array of `cars_train_annos.mat` and its like."""
    columns = _boxes(rows)
    if labels:
        columns["class"] = [_integer(row.plan.label + 1) for row in rows]
    columns["fname"] = [f"{row.plan.number:05d}.jpg" for row in rows]
    return _structs(columns)


def _joint_annotations(rows: Sequence[_Row]) -> np.ndarray:
    """Returns the struct array of `cars_annos.mat`."""
    paths = [_path(row.plan, "car_ims") for row in rows]
    columns: dict[str, Sequence[Any]] = {"relative_im_path": paths, **_boxes(rows)}
    columns["class"] = [_integer(row.plan.label + 1) for row in rows]
    columns["test"] = [_integer(int(row.plan.split == "test")) for row in rows]
    return _structs(columns)


def _mat(variables: dict[str, np.ndarray]) -> bytes:
    """Returns a version 5 .mat file whose bytes do not tell the time."""
    import scipy.io  # heavy, and for this alone

    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=True)
    return _MAT_HEADER + file.getvalue()[len(_MAT_HEADER) :]
