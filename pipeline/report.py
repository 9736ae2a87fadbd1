"""What was made: `report.json` for programs, `report.html` for people, a summary for the terminal.

Pure rendering of sums and thumbnails that the shards' sidecars hold. Nothing here knows the time or
draws a random number, so equal results give equal bytes. The page is one file without scripts or
links outside: bars are boxes of HTML, whose text stays readable on a phone where that of a scaled
plot would shrink.
"""

import base64
import collections
import dataclasses
import html
import io
import statistics as averages
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.rejects import Reject
from pipeline.statistics import AREA_BIN, SIDE_BIN, Histogram, Statistics

if TYPE_CHECKING:
    from rich.console import RenderableType

THUMBNAIL_SIDE = 128
MAX_REJECT_ROWS = 50
MAX_DUPLICATE_ROWS = 100
MAX_OPEN_CLASSES = 40  # more are folded away
MAX_BARS = 32


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
    duplicates: Sequence[tuple[str, ...]],
    labels: Mapping[str, int] | None = None,
) -> Report:
    """Returns the report on a finished run.

    Args:
        preprocessing: the content of `preprocessing.json`: `options`, `versions`, `splits` with
            `found` and `missing`, and whatever else tells how the data set was made.
        class_names: names of the classes, by label.
        splits: what was made, by name of the split, in the order to show.
        rejects: pictures left out, in the order to show.
        duplicates: ids of pictures with equal pixels, a tuple for each group.
        labels: labels of the ids in `duplicates`, where known; groups that disagree are marked.
    """
    content = _content(preprocessing, class_names, splits, rejects, duplicates, labels or {})
    return Report(json=content, html=_page(content, splits, rejects))


def summary(report: Mapping[str, Any]) -> "RenderableType":
    """Returns the end of a run for the terminal, made of the content of `report.json`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, header_style="bold", show_footer=len(report["splits"]) > 1
    )
    total = report["total"]
    columns = [("split", "total"), *zip(_SPLIT_COLUMNS, _split_row(total), strict=True)]
    for name, footer in columns:
        table.add_column(name, footer, justify="left" if name == "split" else "right")
    for name, split in report["splits"].items():
        table.add_row(name, *_split_row(split))
    lines = [Text(_distortion(total))]
    rejects = report["rejects"]
    if rejects["count"]:
        told = ", ".join(f"{count:,} {reason}" for reason, count in rejects["by_reason"].items())
        lines.append(Text(f"left out: {told} (rejects.jsonl)"))
    else:
        lines.append(Text("left out: none"))
    if report["duplicates"]:
        lines.append(Text(_told_duplicates(report["duplicates"])))
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
    palette = np.unique(rgb.reshape(-1, 3), axis=0)
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
    duplicates: Sequence[tuple[str, ...]],
    labels: Mapping[str, int],
) -> dict[str, Any]:
    total = SplitSummary(
        records=sum(split.records for split in splits.values()),
        shards=sum(split.shards for split in splits.values()),
        bytes=sum(split.bytes for split in splits.values()),
        statistics=sum((split.statistics for split in splits.values()), Statistics()),
    )
    reasons = collections.Counter(reject.reason for reject in rejects)
    return {
        "total": _split_content(total),
        "splits": {name: _split_content(split) for name, split in splits.items()},
        "class_names": list(class_names),
        "rejects": {"count": len(rejects), "by_reason": dict(sorted(reasons.items()))},
        "duplicates": [_group_content(ids, splits, labels) for ids in duplicates],
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


def _group_content(
    ids: tuple[str, ...], splits: Mapping[str, SplitSummary], labels: Mapping[str, int]
) -> dict[str, Any]:
    """Returns a group of equal pictures, and what makes it harmful: two labels, two splits."""
    named = {id: labels[id] for id in ids if id in labels}
    # The ids of most layouts begin with the split.
    touched = {id.split("/")[0] for id in ids} & splits.keys()
    return {
        "ids": list(ids),
        "labels": named,
        "labels_differ": len(set(named.values())) > 1,
        "splits_differ": len(touched) > 1,
    }


# --- numbers as text


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _psnr(psnr: float | None) -> str:
    return "–" if psnr is None else f"{psnr:.2f} dB"


_SPLIT_COLUMNS = (
    "pictures", "classes", "a class", "shards", "size", "a picture", "input files", "PSNR", "exact",
)  # fmt: skip


def _split_row(split: Mapping[str, Any]) -> list[str]:
    """Returns the cells under `_SPLIT_COLUMNS` of a split of `report.json`."""
    facts = split["statistics"]
    counts = list(facts["labels"].values())
    span = sorted({min(counts), max(counts)}) if counts else [0]
    return [
        f"{split['records']:,}",
        f"{split['classes']:,}",
        "–".join(f"{count:,}" for count in span),
        f"{split['shards']:,}",
        _bytes(split["bytes"]),
        _bytes(split["bytes"] / split["records"]) if split["records"] else "–",
        _bytes(facts["source_bytes"]),
        _psnr(split["psnr"]),
        f"{facts['exact']:,}",
    ]


def _distortion(split: Mapping[str, Any]) -> str:
    facts = split["statistics"]
    if not facts["pictures"]:
        return "no picture was written"
    if not facts["colors"]:
        return "not quantized: every picture is stored exactly"
    if split["psnr"] is None:
        return f"all {facts['exact']:,} pictures are reproduced exactly"
    others = facts["pictures"] - facts["exact"]
    exact = f"; {facts['exact']:,} more are reproduced exactly" if facts["exact"] else ""
    return f"PSNR {split['psnr']:.2f} dB over {others:,} pictures{exact}"


def _told_duplicates(groups: Sequence[Mapping[str, Any]]) -> str:
    pictures = sum(len(group["ids"]) for group in groups)
    text = f"equal pictures: {pictures:,} in {len(groups):,} groups"
    for flag, told in (
        ("labels_differ", "under different labels"),
        ("splits_differ", "in two splits"),
    ):
        if count := sum(group[flag] for group in groups):
            text += f", {count:,} {told}"
    return text


# --- the page

_SPLIT_COLORS = ("#3f6c94", "#c98b4a", "#6f9a6b", "#96719b")

_STYLE = """
:root { color-scheme: light; --ink: #23292f; --soft: #66707a; --line: #e3e6e8; --bar: #3f6c94 }
* { box-sizing: border-box }
body { margin: 0; background: #fafaf8; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.7rem; font-weight: 650; margin: 0; letter-spacing: -.01em }
h2 { font-size: 1.15rem; font-weight: 650; margin: 3rem 0 .75rem }
h3 { font-size: .95rem; font-weight: 600; margin: 0 0 .5rem }
p { margin: .25rem 0 1rem; max-width: 46rem }
.soft, figcaption small, .axis { color: var(--soft) }
.tiles { display: grid; gap: .75rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)) }
.tile, .card { background: #fff; border: 1px solid var(--line); border-radius: .6rem;
  padding: .9rem }
.tile b { display: block; font-size: 1.55rem; font-weight: 650; line-height: 1.2;
  font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: .85rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
.wide table { min-width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem 1.2rem .4rem 0;
  border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500; white-space: nowrap }
td.n, th.n { text-align: right; white-space: nowrap }
td:last-child, th:last-child { padding-right: 0 }
tfoot td { font-weight: 600; border-bottom: 0 }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere }
.mark { background: #fbeccb; border-radius: .3rem; padding: 0 .35rem; white-space: nowrap }
.plots { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)) }
.bars { display: flex; align-items: flex-end; gap: 2px; height: 8rem;
  border-bottom: 1px solid var(--soft) }
.bars i { flex: 1; background: var(--bar); min-height: 0; border-radius: 2px 2px 0 0 }
.bars i.some { min-height: 2px }
.axis { display: flex; justify-content: space-between; font-size: .78rem; padding-top: .2rem }
.key { font-size: .85rem; color: var(--soft); margin-right: 1rem; white-space: nowrap }
.key i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin-right: .35rem }
.classes { columns: 24rem; column-gap: 2rem; margin-top: .75rem; font-size: .8rem }
.class { display: grid; grid-template-columns: minmax(0, 13rem) minmax(0, 1fr) auto; gap: .6rem;
  align-items: center; break-inside: avoid; padding: .1rem 0; border-bottom: 1px solid #f0f1f2 }
.class span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.class div { display: flex; height: .65rem }
.class div i:last-child { border-radius: 0 2px 2px 0 }
.class span:last-child { color: var(--soft); font-variant-numeric: tabular-nums }
details > summary { cursor: pointer; color: var(--bar); margin: .5rem 0 }
.sheet { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)) }
figure { margin: 0; padding: .6rem }
figure div { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #f1f1ee;
  border-radius: .3rem }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .45rem; overflow-wrap: anywhere }
@media (max-width: 30rem) {
  main { padding: 1.25rem .9rem 3rem }
  .class { grid-template-columns: minmax(0, 9.5rem) minmax(0, 1fr) auto }
}
"""


def _page(
    content: Mapping[str, Any], splits: Mapping[str, SplitSummary], rejects: Sequence[Reject]
) -> str:
    options = content["preprocessing"].get("options", {})
    sections = [
        _header(content, options),
        _section("Splits", _split_table(content)),
        _section("Classes", _classes(content)),
        _section("Pictures as they came", _sizes(content["total"]["statistics"])),
        _section("Distortion", _quality(content["total"])),
        _section("Left out", _reject_tables(content["rejects"], rejects)),
        _section("Equal pictures", _duplicate_table(content)),
        *(_contact_sheet(name, split, content["class_names"]) for name, split in splits.items()),
        _section("How it was made", _making(content["preprocessing"])),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Preprocessing report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n{body}\n</section>"


def _text(value: object) -> str:
    return html.escape(str(value))


def _code(value: object) -> str:
    return f"<code>{_text(value)}</code>"


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    foot: Sequence[str] | None = None,
    numbers: bool = False,
) -> str:
    """Returns a table of cells that are HTML already.

    With `numbers`, all columns but the first are aligned to the right.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["", *([' class="n"' if numbers else ""] * (len(cells) - 1))]
        return "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True))

    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    foot_html = f"<tfoot><tr>{row(foot, 'td')}</tr></tfoot>" if foot else ""
    head_html = f"<thead><tr>{row(head, 'th')}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{head_html}<tbody>\n{body}\n</tbody>{foot_html}</table></div>'


def _header(content: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    total = content["total"]
    facts = total["statistics"]
    side = options.get("image_size")
    told = [
        f"{len(content['class_names']):,} classes",
        f"{side} × {side} pixels" if side else "original size",
        f"{options['colors']} colours" if options.get("colors") else "not quantized",
        f"encoding {options['encoding']}" if "encoding" in options else "",
    ]
    tiles = [
        (f"{total['records']:,}", "pictures"),
        (f"{len(content['splits'])}", "splits in " + _count(total["shards"], "shard")),
        (_bytes(total["bytes"]), f"of {_bytes(facts['source_bytes'])} of input files"),
        (_psnr(total["psnr"]), "PSNR"),
        (f"{facts['exact']:,}", "pictures reproduced exactly"),
        (f"{content['rejects']['count']:,}", "left out"),
    ]
    boxes = "".join(
        f'<div class="tile"><b>{_text(value)}</b><span>{_text(what)}</span></div>'
        for value, what in tiles
    )
    return (
        "<header>\n<h1>Preprocessing report</h1>\n"
        f'<p class="soft">{_text(" · ".join(part for part in told if part))}</p>\n'
        f'<div class="tiles">{boxes}</div>\n</header>'
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _split_table(content: Mapping[str, Any]) -> str:
    planned = content["preprocessing"].get("splits", {})

    def left_out(name: str) -> list[str]:
        plan = planned.get(name)
        if plan is None:
            return ["–"]
        return [f"{plan['found'] + plan['missing'] - content['splits'][name]['records']:,}"]

    head = ["split", *_SPLIT_COLUMNS, "left out"]
    rows = [
        [_text(cell) for cell in (name, *_split_row(split), *left_out(name))]
        for name, split in content["splits"].items()
    ]
    foot = ["total", *_split_row(content["total"]), f"{content['rejects']['count']:,}"]
    return _table(head, rows, foot=foot if len(rows) > 1 else None, numbers=True)


def _classes(content: Mapping[str, Any]) -> str:
    names = content["class_names"]
    splits = {name: split["statistics"]["labels"] for name, split in content["splits"].items()}
    counts = [
        [split.get(str(label), 0) for split in splits.values()] for label in range(len(names))
    ]
    totals = [sum(row) for row in counts]
    if not any(totals):
        return '<p class="soft">No picture was written.</p>'
    told = (
        f"{min(totals):,} to {max(totals):,} pictures a class, "
        f"median {averages.median(totals):,.0f}; classes without any: {totals.count(0):,}."
    )
    keys = "".join(
        f'<span class="key"><i style="background:{_color(i)}"></i>{_text(name)}</span>'
        for i, name in enumerate(splits)
    )
    rows = "\n".join(
        f'<div class="class"><span title="{_text(name)}">{_text(name)}</span>'
        f"<div>{_segments(row, max(totals))}</div>"
        f"<span>{' + '.join(f'{count:,}' for count in row)}</span></div>"
        for name, row in zip(names, counts, strict=True)
    )
    folded = "" if len(names) > MAX_OPEN_CLASSES else " open"
    overview = _bars(
        [(name, total) for name, total in zip(names, totals, strict=True)],
        ("label 0", f"label {len(names) - 1}"),
    )
    return (
        f'<p class="soft">{_text(told)}</p>\n<div class="card">{overview}</div>\n'
        f"<details{folded}><summary>Every class</summary>{keys}\n"
        f'<div class="classes">\n{rows}\n</div></details>'
    )


def _color(split: int) -> str:
    return _SPLIT_COLORS[split % len(_SPLIT_COLORS)]


def _segments(counts: Sequence[int], longest: int) -> str:
    return "".join(
        f'<i style="width:{100 * count / longest:.2f}%;background:{_color(i)}"></i>'
        for i, count in enumerate(counts)
        if count
    )


def _bars(bars: Sequence[tuple[str, int]], axis: Sequence[str]) -> str:
    """Returns a bar chart of (what, how many), with the texts of `axis` spread below."""
    highest = max((count for _, count in bars), default=0) or 1
    boxes = "".join(
        f'<i{" class=some" if count else ""} style="height:{100 * count / highest:.1f}%"'
        f' title="{_text(what)}: {count:,}"></i>'
        for what, count in bars
    )
    ticks = "".join(f"<span>{_text(tick)}</span>" for tick in axis)
    return f'<div class="bars">{boxes}</div><div class="axis">{ticks}</div>'


def _histogram(counts: Histogram, width: int, unit: str, scale: float = 1) -> str:
    """Returns a chart of lower edges of bins of `width`, at most `MAX_BARS` of them.

    The one picture in a hundred beyond the rest is counted in the last bar: a single huge one would
    press all others into a corner.
    """
    if not counts:
        return ""
    values = [key for key in sorted(counts) for _ in range(counts[key])]
    low, high = values[0], values[min(len(values) - 1, len(values) * 99 // 100)]
    step = width * max(1, -(-(high - low + width) // (width * MAX_BARS)))
    low = low // step * step
    bars = collections.Counter(min(value, high) // step * step for value in values)
    edges = range(low, high // step * step + step, step)
    beyond = values[-1] > high

    def number(edge: int) -> str:
        return f"{edge * scale:,.4g}" if scale != 1 else f"{edge:,}"

    named = []
    for edge in edges:
        last = edge == edges[-1]
        single = width == step == 1
        span = number(edge) if single else f"{number(edge)}–{number(edge + step)}"
        named.append(
            (f"{number(edge)} {unit} or more" if last and beyond else f"{span} {unit}", bars[edge])
        )
    middle = edges[len(edges) // 2]
    end = f"{number(edges[-1])} {unit} or more" if beyond else f"{number(edges[-1])} {unit}"
    axis = [number(low), number(middle), end] if len(edges) > 2 else [number(e) for e in edges]
    return _bars(named, axis)


def _numbers(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(key): count for key, count in counts.items()}


def _sizes(facts: Mapping[str, Any]) -> str:
    if not facts["pictures"]:
        return '<p class="soft">No picture was written.</p>'
    mean = facts["source_pixels"] / facts["pictures"] / 1e6
    size = _bytes(facts["source_bytes"] / facts["pictures"])
    stored = facts["stored_pixels"] / facts["pictures"] / 1e6
    told = (
        f"Before crop and resize: mean {mean:.2f} megapixels and {size} a file. "
        f"Stored: {stored:.3f} megapixels."
    )
    plots = [
        ("Width", _histogram(_numbers(facts["source_widths"]), SIDE_BIN, "px")),
        ("Height", _histogram(_numbers(facts["source_heights"]), SIDE_BIN, "px")),
        ("Megapixels", _histogram(_numbers(facts["source_areas"]), AREA_BIN, "MP", 1e-6)),
    ]
    return f'<p class="soft">{_text(told)}</p>\n{_plots(plots)}'


def _plots(plots: Iterable[tuple[str, str]]) -> str:
    cards = "\n".join(
        f'<div class="card"><h3>{_text(title)}</h3>{plot}</div>' for title, plot in plots
    )
    return f'<div class="plots">\n{cards}\n</div>'


def _quality(total: Mapping[str, Any]) -> str:
    told = f'<p class="soft">{_text(_distortion(total))}.'
    colors = _numbers(total["statistics"]["colors"])
    if not colors:
        return told + "</p>"
    plot = _plots([("Colours used in a picture", _histogram(colors, 1, "colours"))])
    return (
        f"{told} PSNR is 10 log₁₀(255² / MSE) of the squared error summed over all pixels and "
        f"channels of these pictures, against the picture just before quantization.</p>\n{plot}"
    )


def _reject_tables(totals: Mapping[str, Any], rejects: Sequence[Reject]) -> str:
    if not rejects:
        return '<p class="soft">Nothing: every picture that was found or annotated is in.</p>'
    reasons = _table(
        ["reason", "pictures"],
        [[_text(reason), f"{count:,}"] for reason, count in totals["by_reason"].items()],
        numbers=True,
    )
    rows = [
        [_code(r.id), _text(r.reason), f"{_text(r.detail)}<br>{_code(r.path)}"]
        for r in rejects[:MAX_REJECT_ROWS]
    ]
    more = len(rejects) - len(rows)
    told = f"{more:,} more in rejects.jsonl." if more else "The same rows are in rejects.jsonl."
    return (
        f'<div class="plots"><div>{reasons}</div></div>\n'
        f"<details><summary>{_text(_count(len(rows), 'row'))}</summary>\n"
        f'{_table(["id", "reason", "detail"], rows)}\n<p class="soft">{_text(told)}</p></details>'
    )


def _duplicate_table(content: Mapping[str, Any]) -> str:
    groups = content["duplicates"]
    if not groups:
        return '<p class="soft">None: no two pictures have the same pixels.</p>'
    names = content["class_names"]

    def row(group: Mapping[str, Any]) -> list[str]:
        ids = "<br>".join(_code(id) for id in group["ids"])
        classes = "<br>".join(_text(names[label]) for label in group["labels"].values())
        marks = [("labels_differ", "different labels"), ("splits_differ", "in two splits")]
        told = " ".join(f'<span class="mark">{text}</span>' for flag, text in marks if group[flag])
        return [ids, classes, told]

    # Those that harm training or evaluation first; Python's sort keeps the order of the rest.
    ordered = sorted(groups, key=lambda g: -(g["labels_differ"] + g["splits_differ"]))
    table = _table(["ids", "classes", ""], [row(group) for group in ordered[:MAX_DUPLICATE_ROWS]])
    more = len(groups) - MAX_DUPLICATE_ROWS
    told = f'<p class="soft">{more:,} more groups in report.json.</p>' if more > 0 else ""
    text = _told_duplicates(groups)
    return (
        f'<p class="soft">{_text(text[0].upper() + text[1:])}. All of them are stored; nothing is '
        f"dropped silently.</p>\n{table}{told}"
    )


def _contact_sheet(name: str, split: SplitSummary, class_names: Sequence[str]) -> str:
    if not split.thumbnails:
        return ""
    figures = "\n".join(
        f'<figure class="card"><div><img alt="before" loading="lazy" src="{_text(thumb.before)}">'
        f'<img alt="after" loading="lazy" src="{_text(thumb.after)}"></div>'
        f"<figcaption>{_text(class_names[thumb.label])}<br><small>{_text(thumb.id)}</small>"
        "</figcaption></figure>"
        for thumb in split.thumbnails
    )
    told = "Before and after quantization."
    return _section(
        f"Contact sheet: {name}",
        f'<p class="soft">{told}</p>\n<div class="sheet">\n{figures}\n</div>',
    )


def _making(preprocessing: Mapping[str, Any]) -> str:
    groups = {"Options": preprocessing.get("options", {}), "Input and format": {}}
    groups["Versions"] = preprocessing.get("versions", {})
    shown = ("options", "versions", "splits")
    groups["Input and format"] = {k: v for k, v in preprocessing.items() if k not in shown}
    cards = "\n".join(
        f'<div class="card"><h3>{title}</h3>'
        + _table([], [[_text(key), _code(value)] for key, value in facts.items()])
        + "</div>"
        for title, facts in groups.items()
        if facts
    )
    return f'<div class="plots">\n{cards}\n</div>'
