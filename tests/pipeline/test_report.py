"""`pipeline.report`: the figures, the page as a browser would parse it, and the thumbnails."""

import base64
import html.parser
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import rich.console
from PIL import Image

from pipeline import report_page, report_text
from pipeline.duplicates import EqualPictures
from pipeline.rejects import Reject
from pipeline.report import SplitSummary, Thumbnail, make_report, summary, thumbnail
from pipeline.statistics import Statistics, of_picture

HOSTILE = "<script>alert(\"x\")</script> & 'quotes'"
NAMES = ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", HOSTILE)


def picture(seed, height=40, width=60, colors=16):
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (colors, 3), dtype=np.uint8)
    coarse = rng.integers(0, colors, (-(-height // 8), -(-width // 8)))
    stored = palette[np.kron(coarse, np.ones((8, 8), int))[:height, :width]]
    noise = rng.integers(-6, 7, stored.shape)
    return np.clip(stored + noise, 0, 255).astype(np.uint8), stored


def split(seeds, name="train", quantized=True):
    total, thumbnails = Statistics(), []
    for seed in seeds:
        prepared, stored = picture(seed, colors=2 + seed % 20)
        if seed % 4 == 3:
            prepared = stored
        total = total + of_picture(
            label=seed % 2,
            source_bytes=1000 + seed,
            source_size=(100 + 37 * seed, 200 + 61 * seed),
            prepared=prepared,
            stored=stored if quantized else None,
        )
        thumbnails.append(thumbnail(f"{name}/{seed}", seed % 2, prepared, stored))
    return SplitSummary(len(seeds), 3, 66_000 * len(seeds), total, tuple(thumbnails))


PREPROCESSING = {
    "name": "stanford_cars",
    "class_names": list(NAMES),
    "layout": HOSTILE,
    "options": {"image_size": 256, "colors": 32, "encoding": "indexed", "crop": "none"},
    "versions": {"numpy": "2.4.6"},
    "splits": {
        "train": {"found": 13, "missing": 1, "shards": 3},
        "test": {"found": 5, "missing": 0, "shards": 3},
    },
}
REJECTS = [
    Reject("test/9", "cars_test/9.jpg", "truncated", HOSTILE),
    Reject("train/7", HOSTILE, "missing", "no such file"),
    Reject("train/8", "cars_train/8.jpg", "truncated", "JPEG: cut"),
]
EQUAL = EqualPictures(
    ({"train/1": 0, "train/3": 2}, {"test/2": 1, "train/4": 1}, {"test/0": 1, HOSTILE: 1})
)
NONE_EQUAL = EqualPictures()


def full_report():
    splits = {"train": split(range(12)), "test": split(range(4), "test")}
    return make_report(PREPROCESSING, NAMES, splits, REJECTS, EQUAL)


class Page(html.parser.HTMLParser):
    """What a browser would see: fails on unbalanced tags, keeps text, attributes and tables."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.texts, self.rows = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def attributes(self, tag, name):
        return [values[name] for kind, values in self.tags if kind == tag and name in values]


def terminal(report):
    out = io.StringIO()
    rich.console.Console(file=out, width=80).print(summary(report))
    return out.getvalue()


# --- content


def test_figures_are_the_sums_of_the_splits():
    train, test = split(range(12)), split(range(4), "test")
    got = make_report(
        PREPROCESSING, NAMES, {"train": train, "test": test}, REJECTS, NONE_EQUAL
    ).json
    assert got["splits"]["train"]["records"] == 12
    assert got["splits"]["test"]["psnr"] == test.statistics.psnr()
    assert Statistics.from_json(got["splits"]["train"]["statistics"]) == train.statistics
    assert got["total"]["bytes"] == 16 * 66_000
    assert got["total"]["shards"] == 6
    assert Statistics.from_json(got["total"]["statistics"]) == train.statistics + test.statistics
    assert got["total"]["psnr"] == (train.statistics + test.statistics).psnr()
    assert got["rejects"] == {"count": 3, "by_reason": {"missing": 1, "truncated": 2}}
    assert got["class_names"] == list(NAMES)
    assert got["preprocessing"]["options"] == PREPROCESSING["options"]
    assert json.loads(json.dumps(got)) == got


def test_equal_pictures_with_other_labels_or_splits_are_marked():
    report = full_report()
    flags = [(g["labels_differ"], g["splits_differ"]) for g in report.json["duplicates"]]
    assert flags == [(True, False), (False, True), (False, False)]
    page = Page(report.html)
    (row,) = [row for row in page.rows if "train/1" in row[0]]
    assert row == [f"train/1 {NAMES[0]}train/3 {NAMES[2]}", "different labels"]
    (row,) = [row for row in page.rows if "test/2" in row[0]]
    assert row[1] == "different splits"
    assert "6 in 3 groups, 1 under different labels, 1 in more than one split" in page.text


def test_equal_input_gives_equal_bytes():
    first, second = full_report(), full_report()
    assert first.html == second.html
    assert json.dumps(first.json) == json.dumps(second.json)


# --- the page


def test_everything_from_outside_is_escaped():
    source = full_report().html
    assert "<script" not in source
    assert HOSTILE not in source
    page = Page(source)
    # A class name, two rejects, an id, an option: each comes back whole from the parser.
    assert sum(HOSTILE in text for text in page.texts) >= 5
    assert not [tag for tag, _ in page.tags if tag == "script"]


def test_page_needs_nothing_outside_itself():
    source = full_report().html
    page = Page(source)
    assert page.attributes("img", "src")
    assert all(src.startswith("data:image/") for src in page.attributes("img", "src"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert not re.search(r"https?://|url\(|@import", source)
    assert page.attributes("meta", "content") == ["width=device-width, initial-scale=1"]


def test_split_table():
    page = Page(full_report().html)
    head = next(row for row in page.rows if row[0] == "split")
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in page.rows if len(row) == len(head)}
    assert rows["train"]["pictures"] == "12"
    assert rows["train"]["left out"] == "2"  # found 13 + missing 1 - written 12
    assert rows["test"]["left out"] == "1"
    assert rows["total"]["left out"] == "3"
    assert rows["train"]["exact"] == "3"
    assert rows["train"]["per class"] == "6"
    assert rows["total"]["classes"] == "2"
    assert rows["total"]["size"] == "1.1 MB"
    assert rows["total"]["input files"] == f"{(16_000 + 66 + 6) / 1000:.1f} kB"
    assert re.fullmatch(r"\d\d\.\d\d dB", rows["train"]["PSNR"])


def test_every_class_is_there_with_its_counts():
    page = Page(full_report().html)
    assert "0 to 8 pictures a class, median 8. Classes without any: 1." in page.text
    for name, counts in zip(NAMES, ("6 + 2", "6 + 2", "0 + 0"), strict=True):
        assert f"{name} {counts}" in page.text


def test_many_classes_are_folded_away_and_few_are_not():
    names = [f"class {i}" for i in range(196)]
    for count, is_open in ((196, False), (8, True)):
        report = make_report({}, names[:count], {"train": split(range(4))}, [], NONE_EQUAL)
        page = Page(report.html)
        (details,) = [values for tag, values in page.tags if tag == "details"]
        assert ("open" in details) == is_open
        assert page.text.count("class 7 ") == 1


def test_rejects_are_listed_rarest_reason_first_and_cut():
    missing = [Reject(f"train/{i}", f"{i}.jpg", "missing", "no such file") for i in range(200)]
    rejects = [*missing, REJECTS[0]]
    page = Page(make_report({}, NAMES, {"train": split(range(4))}, rejects, NONE_EQUAL).html)
    assert ["missing", "200"] in page.rows
    assert ["truncated", "1"] in page.rows
    listed = [row for row in page.rows if len(row) == 3 and row[1] in ("missing", "truncated")]
    assert len(listed) == report_page.MAX_REJECT_ROWS
    assert listed[0] == ["test/9", "truncated", f"{HOSTILE}cars_test/9.jpg"]
    assert listed[1][0] == "train/0"
    assert "151 more in rejects.jsonl" in page.text


def test_bars_count_every_picture():
    page = Page(full_report().html)
    counts = {}
    for title in page.attributes("i", "title"):
        what, count = title.rsplit(": ", 1)
        unit = next((u for u in ("px", "MP", "colours") if f" {u}" in what), "class")
        counts[unit] = counts.get(unit, 0) + int(count)
    assert counts == {"class": 16, "px": 32, "MP": 16, "colours": 16}


@pytest.mark.parametrize(
    "counts",
    [{640: 1}, {0: 5, 50: 1}, {i * 50: 1 for i in range(300)}, {300: 9999, 7000: 1}, {7: 1, 9: 2}],
)
def test_histogram_has_few_bars_whatever_the_range(counts):
    width = 1 if 7 in counts else 50
    source = report_page._histogram(counts, width, "px")
    titles = Page(source).attributes("i", "title")
    bars = [int(title.rsplit(": ", 1)[1].replace(",", "")) for title in titles]
    assert sum(bars) == sum(counts.values())
    assert len(bars) <= report_page.MAX_BARS + 1
    assert bars[0] > 0
    assert max(map(float, re.findall(r"height:([\d.]+)%", source))) == 100


def test_a_rare_huge_picture_is_counted_in_the_last_bar():
    source = report_page._histogram({300: 500, 350: 495, 7000: 5}, 50, "px")
    titles = Page(source).attributes("i", "title")
    assert titles == ["300 px to 350: 500", "350 px and more: 500"]


def test_a_run_that_wrote_nothing():
    empty = SplitSummary(0, 2, 0, Statistics())
    report = make_report({}, NAMES, {"train": empty}, REJECTS, NONE_EQUAL)
    assert "No picture was written" in Page(report.html).text
    assert "no picture was written" in terminal(report.json)
    assert report.json["total"]["psnr"] is None


def test_without_quantization_there_is_no_distortion():
    report = make_report({}, NAMES, {"train": split(range(4), quantized=False)}, [], NONE_EQUAL)
    text = Page(report.html).text
    assert "not quantized: every picture is stored exactly" in text
    assert "Colours used" not in text
    assert "every picture is stored exactly" in terminal(report.json)


# --- the summary


def test_summary_is_made_of_the_json_alone():
    report = full_report()
    text = terminal(json.loads(json.dumps(report.json)))
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][:4] == ["train", "12", "2", "6"]
    assert lines[2][:4] == ["test", "4", "2", "2"]
    assert lines[3][:3] == ["total", "16", "2"]
    assert lines[0][-2:] == ["PSNR", "exact"]
    psnr = f"{report.json['total']['psnr']:.2f}"
    assert f"PSNR {psnr} dB over 12 pictures; 4 more are reproduced exactly" in text
    assert "left out: 1 missing, 2 truncated (rejects.jsonl)" in text
    assert "equal pictures: 6 in 3 groups" in text


def test_summary_of_one_clean_split():
    text = terminal(make_report({}, NAMES, {"train": split(range(4))}, [], NONE_EQUAL).json)
    assert "total" not in text
    assert "left out: none" in text
    assert "equal pictures" not in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_600, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (5e15, "5,000.0 TB"),
    ],
)
def test_file_size(size, text):
    assert report_text.file_size(size) == text


# --- thumbnails


def decode(url):
    head, data = url.split(",", 1)
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image


@pytest.mark.parametrize("size", [(40, 60), (256, 256), (300, 700), (1, 1), (128, 2)])
def test_thumbnails_are_small_and_keep_the_colours(size):
    prepared, stored = picture(0, *size)
    thumb = thumbnail("train/1", 1, prepared, stored)
    before, after = decode(thumb.before), decode(thumb.after)
    assert before.format == "JPEG"
    assert after.format == "PNG"
    assert before.size == after.size
    assert max(after.size) == min(128, max(size))
    rgb = np.asarray(after.convert("RGB"))
    used = {tuple(color) for color in rgb.reshape(-1, 3).tolist()}
    assert used <= {tuple(color) for color in stored.reshape(-1, 3).tolist()}
    if max(size) <= 128:
        np.testing.assert_array_equal(rgb, stored)
    # Noise, JPEG and averaged edges apart, before shows the same picture; another one is 85 away.
    assert np.abs(np.asarray(before.convert("RGB")).astype(int) - rgb).mean() < 25


def test_shrunken_pixels_get_the_nearest_colour_of_the_picture():
    prepared, stored = picture(1, 256, 256)
    got = np.asarray(decode(thumbnail("a", 0, prepared, stored).after).convert("RGB"))
    means = np.rint(stored.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))).astype(int)
    palette = np.unique(stored.reshape(-1, 3), axis=0).astype(int)

    def distances(colors):
        return ((means[..., None, :] - colors) ** 2).sum(-1)

    best = distances(palette).min(-1)
    ours = distances(got[..., None, :].astype(int))[..., 0]
    # Means are rounded once here and perhaps otherwise in Pillow; hence one step of tolerance.
    assert (np.sqrt(ours) <= np.sqrt(best) + 2).all()
    assert (ours == best).mean() > 0.95


def test_a_picture_of_many_colours_is_a_jpeg():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert decode(thumbnail("a", 0, noise, noise).after).format == "JPEG"


def test_thumbnails_survive_json_and_are_deterministic():
    prepared, stored = picture(2)
    thumb = thumbnail("train/1", 1, prepared, stored)
    assert thumbnail("train/1", 1, prepared, stored) == thumb
    assert Thumbnail.from_json(json.loads(json.dumps(thumb.to_json()))) == thumb
    # A natural picture of 128 × 128 stays near 10 kB; hundreds of them make a page.
    assert len(thumb.before) + len(thumb.after) < 20_000


def test_contact_sheet_shows_class_and_id():
    page = Page(full_report().html)
    assert page.attributes("img", "alt") == ["before", "after"] * 16
    assert f"{NAMES[1]} test/3" in page.text


def test_workers_stay_light():
    """Every Beam worker imports this module, for its thumbnails."""
    code = "import sys, pipeline.report; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert loaded.isdisjoint({"matplotlib", "rich", "scipy", "sklearn", "tensorflow", "jax"})


def test_a_report_that_names_few_equal_pictures_of_many_counts_them_all():
    equal = EqualPictures(({"train/1": 0, "train/3": 2},), 4000, 1999, 7, 5, complete=False)
    report = make_report(PREPROCESSING, NAMES, {"train": split(range(4))}, [], equal)
    told = "4,000 in 1,999 groups, 7 under different labels, 5 in more than one split"
    assert told in Page(report.html).text
    assert told in " ".join(terminal(report.json).split())
    assert len(report.json["duplicates"]) == 1


def test_a_histogram_is_that_of_the_values_one_by_one():
    def one_by_one(counts, width):
        values = sorted(value for value, count in counts.items() for _ in range(count))
        low, high = values[0], values[(len(values) - 1) * 99 // 100]
        step = width * -(-(high - low + width) // (width * report_page.MAX_BARS))
        bars = [0] * (high // step - low // step + 1)
        for value in values:
            bars[min(value, high) // step - low // step] += 1
        return bars

    for seed in range(50):
        rng = np.random.default_rng(seed)
        edges = rng.integers(0, 100, rng.integers(1, 30)) * 50
        counts = {int(edge): int(rng.integers(1, 200)) for edge in edges}
        shown = report_page._histogram(counts, 50, "px")
        told = [int(n.replace(",", "")) for n in re.findall(r'title="[^"]*: ([\d,]+)"', shown)]
        assert told == one_by_one(counts, 50)
