"""What was made: `report.json` for programs, `report.html` for people, a summary for the terminal.

Pure rendering of sums and thumbnails that the shards' sidecars hold. Nothing here knows the time or
draws a random number, so equal results give equal bytes.
"""

import base64
import collections
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import report_page, report_text
from pipeline.duplicates import EqualPictures, split_of
from pipeline.rejects import Reject
from pipeline.statistics import Statistics

if TYPE_CHECKING:
    from rich.console import RenderableType

THUMBNAIL_SIDE = 128


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picture before and after quantization, at most `THUMBNAIL_SIDE` pixels a side.

    Attributes:
        id: id of the picture.
        label: index of its class.
        before: JPEG of the prepared picture, as a `data:` URL.
        after: palette PNG of the stored one, likewise; a JPEG if it has more than 256 colours.
    """

    id: str
    label: int
    before: str
    after: str

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Thumbnail":
        """Returns the thumbnail that `to_json` wrote; an unknown key is a TypeError."""
        return cls(**value)


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """What was made of one split.

    Attributes:
        records: pictures written.
        shards: files they are in.
        bytes: size of these files.
        statistics: of the pictures written.
        thumbnails: of some of them.
    """

    records: int
    shards: int
    bytes: int
    statistics: Statistics
    thumbnails: tuple[Thumbnail, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """The contents of `report.json` and of `report.html`."""

    json: dict[str, Any]
    html: str


def thumbnail(
    id: str, label: int, prepared: NDArray[np.uint8], stored: NDArray[np.uint8]
) -> Thumbnail:
    """Returns a small copy of a picture before and after quantization.

    Args:
        id: id of the picture.
        label: index of its class.
        prepared: uint8 (H, W, 3), as it went into the quantizer.
        stored: uint8 (H, W, 3), as a reader of the record sees it.
    """
    return Thumbnail(id, label, _jpeg(_shrink(prepared)), _palette_png(stored))


def make_report(
    preprocessing: Mapping[str, Any],
    class_names: Sequence[str],
    splits: Mapping[str, SplitSummary],
    rejects: Sequence[Reject],
    equal: EqualPictures,
) -> Report:
    """Returns the report on a finished run.

    Args:
        preprocessing: the content of `preprocessing.json`: `options`, `versions`, `splits` with
            `found` and `missing`, and whatever else tells how the data set was made.
        class_names: names of the classes, by label.
        splits: what was made, by name of the split, in the order to show.
        rejects: pictures left out, in the order to show.
        equal: pictures with equal pixels; groups with two labels or two splits are marked.
    """
    content = _content(preprocessing, class_names, splits, rejects, equal)
    thumbnails = {name: split.thumbnails for name, split in splits.items()}
    return Report(json=content, html=report_page.render(content, thumbnails, rejects))


def summary(report: Mapping[str, Any]) -> "RenderableType":
    """Returns the end of a run for the terminal, made of the content of `report.json`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, header_style="bold", show_footer=len(report["splits"]) > 1
    )
    total = report["total"]
    footer = dict(zip(report_text.SPLIT_COLUMNS, report_text.split_row(total), strict=True))
    # The page has them all; a terminal has 80 columns.
    shown = [name for name in footer if name not in ("per picture", "input files")]
    table.add_column("split", "total", no_wrap=True)
    for name in shown:
        table.add_column(name, footer[name], justify="right", no_wrap=True)
    for name, split in report["splits"].items():
        row = dict(zip(report_text.SPLIT_COLUMNS, report_text.split_row(split), strict=True))
        table.add_row(name, *(row[column] for column in shown))
    lines = [Text(report_text.distortion(total))]
    rejects = report["rejects"]
    if rejects["count"]:
        told = ", ".join(f"{count:,} {reason}" for reason, count in rejects["by_reason"].items())
        lines.append(Text(f"left out: {told} (rejects.jsonl)"))
    else:
        lines.append(Text("left out: none"))
    if report["duplicates"]:
        lines.append(Text(report_text.equal_pictures(report)))
    return Group(table, Text(), *lines)


# --- thumbnails


def _shrink(rgb: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(rgb)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX, reducing_gap=None)
    return image


def _palette_png(rgb: NDArray[np.uint8]) -> str:
    """Returns a small copy in the colours of the picture itself.

    Averaging pixels makes new colours, which would hide what quantization did; each is set to the
    nearest that the picture has.
    """
    # As numbers: np.unique(axis=0) takes thirty times as long.
    packed = np.unique(rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))
    palette = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    small = _shrink(rgb)
    if len(palette) > 256:
        return _jpeg(small)
    pixels = np.asarray(small, np.int32).reshape(-1, 3)
    nearest = np.full(len(pixels), np.iinfo(np.int32).max)
    indices = np.zeros(len(pixels), np.uint8)
    for index, color in enumerate(palette.astype(np.int32)):
        distance = ((pixels - color) ** 2).sum(axis=1)
        closer = distance < nearest
        nearest[closer], indices[closer] = distance[closer], index
    indexed = Image.fromarray(indices.reshape(small.height, small.width))
    indexed.putpalette(palette.tobytes())
    return _data_url(indexed, "PNG", optimize=True)


def _jpeg(image: Image.Image) -> str:
    return _data_url(image, "JPEG", quality=88, subsampling=0)


def _data_url(image: Image.Image, format_: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return f"data:image/{format_.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


# --- content


def _content(
    preprocessing: Mapping[str, Any],
    class_names: Sequence[str],
    splits: Mapping[str, SplitSummary],
    rejects: Sequence[Reject],
    equal: EqualPictures,
) -> dict[str, Any]:
    total = SplitSummary(
        records=sum(split.records for split in splits.values()),
        shards=sum(split.shards for split in splits.values()),
        bytes=sum(split.bytes for split in splits.values()),
        statistics=sum((split.statistics for split in splits.values()), Statistics()),
    )
    reasons = collections.Counter(reject.reason for reject in rejects)
    totals = {
        field: getattr(equal, field)
        for field in ("in_all", "pictures", "labels_differ", "splits_differ")
    }
    return {
        "total": _split_content(total),
        "splits": {name: _split_content(split) for name, split in splits.items()},
        "class_names": list(class_names),
        "rejects": {"count": len(rejects), "by_reason": dict(sorted(reasons.items()))},
        "duplicates": [_group_content(group, splits) for group in equal.groups],
        # Only of a set with more of them than are named one by one.
        **({} if equal.complete else {"duplicates_in_all": totals}),
        "preprocessing": {k: v for k, v in preprocessing.items() if k != "class_names"},
    }


def _split_content(split: SplitSummary) -> dict[str, Any]:
    return {
        "records": split.records,
        "shards": split.shards,
        "bytes": split.bytes,
        "classes": len(split.statistics.labels),
        "psnr": split.statistics.psnr(),
        "statistics": split.statistics.to_json(),
    }


def _group_content(labels: Mapping[str, int], splits: Mapping[str, SplitSummary]) -> dict[str, Any]:
    """Returns a group of equal pictures, and what makes it harmful: two labels, two splits."""
    return {
        "ids": list(labels),
        "labels": dict(labels),
        "labels_differ": len(set(labels.values())) > 1,
        "splits_differ": len({split_of(id, splits) for id in labels} - {None}) > 1,
    }
