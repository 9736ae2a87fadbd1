"""`report.html`: one file for people, without scripts or links outside.

Bars are boxes of HTML and not drawings: their text stays readable on a phone, where that of a
scaled plot would shrink.
"""

import bisect
import collections
import heapq
import html
import itertools
import statistics as averages
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import report_text
from pipeline.rejects import Reject
from pipeline.statistics import AREA_BIN, SIDE_BIN, Histogram

if TYPE_CHECKING:
    from pipeline.report import Thumbnail

MAX_REJECT_ROWS = 50
MAX_DUPLICATE_ROWS = 100
MAX_OPEN_CLASSES = 40  # more are folded away
MAX_BARS = 32

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
.full table { min-width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem 1.2rem .4rem 0;
  border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500; white-space: nowrap }
td.n, th.n { text-align: right; white-space: nowrap }
td:last-child, th:last-child { padding-right: 0 }
tfoot td { font-weight: 600; border-bottom: 0 }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.card code, details code { overflow-wrap: anywhere }
.mark { background: #fbeccb; border-radius: .3rem; padding: 0 .35rem; white-space: nowrap }
.plots { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)) }
.bars { display: flex; align-items: flex-end; gap: 2px; height: 8rem;
  border-bottom: 1px solid var(--soft) }
.bars.dense { gap: 0 }
.bars i { flex: 1; background: var(--bar); border-radius: 2px 2px 0 0 }
.bars i.some { min-height: 2px }
.axis { display: flex; justify-content: space-between; font-size: .78rem; padding-top: .2rem }
.key { font-size: .85rem; color: var(--soft); margin-right: 1rem; white-space: nowrap }
.key i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin-right: .35rem }
.classes { columns: 24rem; column-gap: 2rem; margin-top: .75rem; font-size: .8rem }
.class { display: grid; grid-template-columns: minmax(0, 17rem) minmax(4rem, 1fr) auto; gap: .6rem;
  align-items: center; break-inside: avoid; padding: .1rem 0; border-bottom: 1px solid #f0f1f2 }
.class span { line-height: 1.3; overflow-wrap: anywhere }
.class div { display: flex; height: .65rem }
.class div i:last-child { border-radius: 0 2px 2px 0 }
.class span:last-child { color: var(--soft); white-space: nowrap;
  font-variant-numeric: tabular-nums }
details > summary { cursor: pointer; color: var(--bar); margin: .5rem 0 }
.sheet { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)) }
figure { margin: 0; padding: .6rem }
figure div { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #f1f1ee;
  border-radius: .3rem }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .45rem; overflow-wrap: anywhere }
@media (max-width: 30rem) {
  main { padding: 1.25rem .9rem 3rem }
  .class { grid-template-columns: minmax(0, 9.5rem) minmax(3rem, 1fr) auto }
}
"""


def render(
    content: Mapping[str, Any],
    thumbnails: Mapping[str, Sequence["Thumbnail"]],
    rejects: Sequence[Reject],
) -> str:
    """Returns the page.

    Args:
        content: of `report.json`.
        thumbnails: to show, by split.
        rejects: pictures left out; the first of them are listed.
    """
    options = content["preprocessing"].get("options", {})
    sections = [
        _header(content, options),
        _section("Splits", _split_table(content)),
        _section("Classes", _classes(content)),
        _section("Pictures as they came", _sizes(content["total"]["statistics"])),
        _section("Distortion", _quality(content["total"])),
        _section("Left out", _reject_tables(content["rejects"], rejects)),
        _section("Equal pictures", _duplicate_table(content)),
        _section("How it was made", _making(content["preprocessing"])),
        *(_contact_sheet(name, few, content["class_names"]) for name, few in thumbnails.items()),
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

    With `numbers`, all columns but the first are aligned to the right. With `foot`, the table is as
    wide as the page.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["", *([' class="n"' if numbers else ""] * (len(cells) - 1))]
        return "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True))

    css = "wide full" if foot else "wide"
    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    foot_html = f"<tfoot><tr>{row(foot, 'td')}</tr></tfoot>" if foot else ""
    head_html = f"<thead><tr>{row(head, 'th')}</tr></thead>" if head else ""
    return (
        f'<div class="{css}"><table>{head_html}<tbody>\n{body}\n</tbody>{foot_html}</table></div>'
    )


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
        (
            report_text.file_size(total["bytes"]),
            f"of {report_text.file_size(facts['source_bytes'])} of input files",
        ),
        (report_text.decibels(total["psnr"]), "PSNR"),
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

    head = ["split", *report_text.SPLIT_COLUMNS, "left out"]
    rows = [
        [_text(cell) for cell in (name, *report_text.split_row(split), *left_out(name))]
        for name, split in content["splits"].items()
    ]
    foot = ["total", *report_text.split_row(content["total"]), f"{content['rejects']['count']:,}"]
    return _table(head, rows, foot=foot, numbers=True)


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
        f"median {averages.median(totals):,.0f}."
    )
    if 0 in totals:
        told += f" Classes without any: {totals.count(0):,}."
    keys = "".join(
        f'<span class="key"><i style="background:{_color(i)}"></i>{_text(name)}</span>'
        for i, name in enumerate(splits)
    )
    rows = "\n".join(
        f'<div class="class"><span>{_text(name)}</span>'
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
    dense = " dense" if len(bars) > 2 * MAX_BARS else ""
    return f'<div class="bars{dense}">{boxes}</div><div class="axis">{ticks}</div>'


def _histogram(counts: Histogram, width: int, unit: str, scale: float = 1) -> str:
    """Returns a chart of pictures by the lower edge of their bin of `width`, in few enough bars.

    The one picture in a hundred beyond the rest is counted in the last bar: a single huge one would
    press all others into a corner.
    """
    values = sorted(counts)
    ranks = list(itertools.accumulate(counts[value] for value in values))  # pictures up to each
    low, high = values[0], values[bisect.bisect_right(ranks, (ranks[-1] - 1) * 99 // 100)]
    step = width * -(-(high - low + width) // (width * MAX_BARS))
    bars: collections.Counter[int] = collections.Counter()
    for value in values:
        bars[min(value, high) // step * step] += counts[value]
    edges = range(low // step * step, high + 1, step)

    def number(edge: int) -> str:
        return f"{edge * scale:,.4g}" if scale < 1 else f"{edge:,}"

    named = [
        (f"{number(edge)} {unit}" + (f" to {number(edge + step)}" if step > 1 else ""), bars[edge])
        for edge in edges
    ]
    if values[-1] > high:
        named[-1] = (f"{number(edges[-1])} {unit} and more", bars[edges[-1]])
    axis = [number(edges[0]), number(edges[len(edges) // 2])][: len(edges) - 1]
    return _bars(named, [*axis, named[-1][0]])


def _numbers(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(key): count for key, count in counts.items()}


def _sizes(facts: Mapping[str, Any]) -> str:
    if not facts["pictures"]:
        return '<p class="soft">No picture was written.</p>'
    mean = facts["source_pixels"] / facts["pictures"] / 1e6
    size = report_text.file_size(facts["source_bytes"] / facts["pictures"])
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
    told = f'<p class="soft">{_text(report_text.distortion(total))}.'
    colors = _numbers(total["statistics"]["colors"])
    if not colors:
        return told + "</p>"
    told += (
        " PSNR is 10 log₁₀(255² / MSE) of the squared error summed over all pixels and channels of "
        "these pictures, against the picture just before quantization."
    )
    if len(colors) == 1:
        return f"{told} Every picture uses {next(iter(colors))} colours.</p>"
    plot = _plots([("Colours used in a picture", _histogram(colors, 1, "colours"))])
    return f"{told}</p>\n{plot}"


def _reject_tables(totals: Mapping[str, Any], rejects: Sequence[Reject]) -> str:
    if not rejects:
        return '<p class="soft">Nothing: every picture that was found or annotated is in.</p>'
    reasons = _table(
        ["reason", "pictures"],
        [[_text(reason), f"{count:,}"] for reason, count in totals["by_reason"].items()],
        numbers=True,
    )
    # The rarest reason first: a thousand missing files must not hide the one that is truncated.
    # nsmallest: as sorted()[:n], holding no more than n.
    first = heapq.nsmallest(
        MAX_REJECT_ROWS, rejects, key=lambda reject: totals["by_reason"][reject.reason]
    )
    rows = [[_code(r.id), _text(r.reason), f"{_text(r.detail)}<br>{_code(r.path)}"] for r in first]
    more = len(rejects) - len(rows)
    told = f"{more:,} more in rejects.jsonl." if more else "The same rows are in rejects.jsonl."
    return (
        f"{reasons}\n"
        f"<details><summary>{_text(_count(len(rows), 'row'))}</summary>\n"
        f'{_table(["id", "reason", "detail"], rows)}\n<p class="soft">{_text(told)}</p></details>'
    )


def _duplicate_table(content: Mapping[str, Any]) -> str:
    groups = content["duplicates"]
    if not groups:
        return '<p class="soft">None: no two pictures have the same pixels.</p>'
    names = content["class_names"]

    def row(group: Mapping[str, Any]) -> list[str]:
        pictures = []
        for id in group["ids"]:
            label = group["labels"].get(id)
            name = "" if label is None else f' <span class="soft">{_text(names[label])}</span>'
            pictures.append(_code(id) + name)
        marks = [("labels_differ", "different labels"), ("splits_differ", "different splits")]
        told = " ".join(f'<span class="mark">{text}</span>' for flag, text in marks if group[flag])
        return ["<br>".join(pictures), told]

    # Those that harm training or evaluation first; Python's sort keeps the order of the rest.
    ordered = sorted(groups, key=lambda g: -(g["labels_differ"] + g["splits_differ"]))
    table = _table([], [row(group) for group in ordered[:MAX_DUPLICATE_ROWS]])
    more = len(groups) - MAX_DUPLICATE_ROWS
    told = f'<p class="soft">{more:,} more groups in report.json.</p>' if more > 0 else ""
    text = report_text.equal_pictures(content)
    return (
        f'<p class="soft">{_text(text[0].upper() + text[1:])}. All of them are stored; nothing is '
        f"dropped silently.</p>\n{table}{told}"
    )


def _contact_sheet(name: str, thumbnails: Sequence["Thumbnail"], class_names: Sequence[str]) -> str:
    if not thumbnails:
        return ""
    figures = "\n".join(
        f'<figure class="card"><div><img alt="before" loading="lazy" src="{_text(thumb.before)}">'
        f'<img alt="after" loading="lazy" src="{_text(thumb.after)}"></div>'
        f"<figcaption>{_text(class_names[thumb.label])}<br><small>{_text(thumb.id)}</small>"
        "</figcaption></figure>"
        for thumb in thumbnails
    )
    told = '<p class="soft">Before (left) and after quantization.</p>'
    return _section(f"Contact sheet: {name}", f'{told}\n<div class="sheet">\n{figures}\n</div>')


def _making(preprocessing: Mapping[str, Any]) -> str:
    apart = ("options", "versions", "splits")
    groups = {
        "Options": preprocessing.get("options", {}),
        "Input and format": {k: v for k, v in preprocessing.items() if k not in apart},
        "Versions": preprocessing.get("versions", {}),
    }
    cards = "\n".join(
        f'<div class="card"><h3>{title}</h3>'
        + _table([], [[_text(key), _code(value)] for key, value in facts.items()])
        + "</div>"
        for title, facts in groups.items()
        if facts
    )
    return f'<div class="plots">\n{cards}\n</div>'
