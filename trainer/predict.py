"""A picture file to classes, prepared by the very functions that prepared the training data."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from pipeline.config import PictureOptions
from pipeline.images import prepare
from pipeline.quantize import pad_palette, quantize
from pipeline.rejects import BadImageError
from trainer.devices import Devices
from trainer.errors import UsageError
from trainer.evaluate import Trained, restore

Box = tuple[int, int, int, int]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most likely classes of a picture.

    Attributes:
        path: of the picture.
        classes: names, most likely first.
        probabilities: of them, by softmax of the logits.
        logits: float32 (all classes,).
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    logits: np.ndarray


def predict(
    model_dir: epath.Path,
    images: Sequence[str],
    box: str | None,
    *,
    top: int,
    as_json: bool,
    console: Console,
) -> int:
    """Prints the most likely classes of picture files.

    Args:
        model_dir: folder that `train` wrote.
        images: files, or folders, which are searched for JPEG, PNG and WebP files.
        box: `x1,y1,x2,y2` in the one file given, or None.
        top: classes to print.
        as_json: whether to print a JSON object a line, and nothing else.
        console: where.

    Returns:
        The number of files that are no pictures; each is told in a line.

    Raises:
        UsageError: if a file does not exist, or the box does not fit the model.
        CheckpointError: if the model is missing or damaged.
    """
    paths = find(images)
    rectangle = parse_box(box) if box else None
    if rectangle and len(paths) != 1:
        raise UsageError(f"--box={box} is of one picture, but {len(paths)} are given")
    trained = restore(model_dir, Devices.of())
    options = PictureOptions.from_json(trained.run.preprocessing["options"])
    if rectangle and options.crop != "box":
        raise UsageError(
            f"--box={box} has no use: the model of {model_dir} was trained on whole pictures"
        )
    if options.crop == "box" and not rectangle and not as_json:
        console.print(
            "note: the model was trained on pictures cut to the car's box; without --box the "
            "whole picture is taken, so give pictures that the car fills",
            soft_wrap=True,
        )
    bad = 0
    for result in classify(trained, paths, rectangle, top=top):
        if isinstance(result, BadFile):
            bad += 1
        if as_json:
            console.out(json.dumps(_row(result), ensure_ascii=False), highlight=False)
        else:
            _print(result, console)
    return bad


@dataclasses.dataclass(frozen=True)
class BadFile:
    """A file that is no picture.

    Attributes:
        path: of the file.
        why: in a few words.
    """

    path: Path
    why: str


def classify(
    trained: Trained, paths: Sequence[Path], box: Box | None = None, *, top: int = 5
) -> Iterator[Prediction | BadFile]:
    """Classifies picture files.

    Args:
        trained: the model.
        paths: of the files.
        box: of the car in each of them, 1-based, ends included; None for whole pictures.
        top: classes to name, all if there are fewer.

    Yields:
        A result for each path, in order.
    """
    options = PictureOptions.from_json(trained.run.preprocessing["options"])
    names = trained.run.class_names
    rows = trained.devices.rows_that_fit(min(_BATCH, len(paths)))
    for start in range(0, len(paths), rows):
        part = paths[start : start + rows]
        examples = [_example(path, box, options) for path in part]
        good = [example for example in examples if isinstance(example, dict)]
        logits = iter(trained.logits([_batch(good, rows)])[0] if good else ())
        for path, example in zip(part, examples, strict=True):
            if isinstance(example, BadFile):
                yield example
                continue
            mine = next(logits)
            best = np.argsort(-mine, kind="stable")[:top]
            odds = np.exp(mine.astype(np.float64) - mine.max())
            yield Prediction(
                path=path,
                classes=tuple(names[i] for i in best),
                probabilities=tuple(float(p) for p in odds[best] / odds.sum()),
                logits=mine,
            )


def _example(
    path: Path, box: Box | None, options: PictureOptions
) -> dict[str, np.ndarray] | BadFile:
    """Returns a picture as `trainer.data` would deliver its record, without the batch axis."""
    try:
        rgb = prepare(path.read_bytes(), box, options).rgb
    except BadImageError as error:
        return BadFile(path, f"{error.reason}: {error.detail}")
    if options.encoding == "rgb":
        return {"image": rgb}
    indices, palette = quantize(rgb, options.colors, method=options.quantizer)
    if options.encoding == "png":
        return {"image": palette[indices]}
    return {"indices": indices, "palette": pad_palette(palette, options.colors)}


def _batch(examples: Sequence[dict[str, np.ndarray]], rows: int) -> dict[str, np.ndarray]:
    """Stacks examples and fills the batch up to `rows` with masked zeros."""
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    fill = rows - len(examples)
    batch = {
        name: np.concatenate([array, np.zeros((fill, *array.shape[1:]), array.dtype)])
        for name, array in batch.items()
    }
    mask = np.arange(rows) < len(examples)
    return {**batch, "label": np.zeros(rows, np.int32), "mask": mask}


def find(images: Sequence[str]) -> list[Path]:
    """Returns the files named, and those in the folders named, sorted within a folder.

    Raises:
        UsageError: for a path that does not exist, or a folder without pictures.
    """
    paths = []
    for image in images:
        path = Path(image)
        if path.is_file():
            paths.append(path)
            continue
        if not path.is_dir():
            raise UsageError(f"{image}: no such file or folder")
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not found:
            raise UsageError(f"{image}: no {', '.join(_SUFFIXES)} file in this folder")
        paths += found
    return paths


def parse_box(text: str) -> Box:
    """Returns the numbers of `x1,y1,x2,y2`.

    Raises:
        UsageError: if they are not four, or not a rectangle.
    """
    try:
        x1, y1, x2, y2 = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--box={text} is not four whole numbers x1,y1,x2,y2") from error
    if not (1 <= x1 <= x2 and 1 <= y1 <= y2):
        raise UsageError(f"--box={text} is no rectangle: 1 <= x1 <= x2 and 1 <= y1 <= y2 must hold")
    return x1, y1, x2, y2


def _row(result: Prediction | BadFile) -> dict[str, object]:
    if isinstance(result, BadFile):
        return {"image": str(result.path), "error": result.why}
    classes = zip(result.classes, result.probabilities, strict=True)
    return {
        "image": str(result.path),
        "classes": [{"name": name, "probability": round(p, 6)} for name, p in classes],
    }


def _print(result: Prediction | BadFile, console: Console) -> None:
    if isinstance(result, BadFile):
        console.print(f"{result.path}: {result.why}", markup=False, soft_wrap=True)
        return
    table = Table(title=str(result.path), title_justify="left", show_header=False, box=None)
    for name, probability in zip(result.classes, result.probabilities, strict=True):
        table.add_row(f"{probability:7.2%}", name)
    console.print(table)
