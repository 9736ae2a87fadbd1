"""Measures what JPEG's scaled decoding saves, and what it costs in quality.

    python -m benchmarks.decode --images DIR [--limit 230]

A JPEG decoder can skip high frequencies and give a raster of 1/2, 1/4 or 1/8 of the side (Pillow's
`draft`). `gap` is how many times the target's side the decoded raster must still have, so a gap of
2 halves a picture of 1,024 x 768 for a target of 128 or 192, not for 256. Beside it Pillow's
`reducing_gap`, which decodes all and averages blocks before it resizes.

Each way is compared with the full decode and Lanczos: the CPU time of decode and resize over all
pictures; and over those pictures that it changes, the PSNR, and the squared error of the quantized
picture against the full one, as a multiple of what quantizing the full one costs.
"""

import argparse
import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.quantize import find_pictures, machine
from pipeline.compiled import UInt8Array
from pipeline.quantize import quantize, warm_up

TARGETS = (128, 224, 256)
DRAFT_GAPS = (1.0, 1.5, 2.0, 3.0, 4.0)
REDUCING_GAPS = (2.0, 3.0)
REPEATS = 3
FULL = "full decode, Lanczos"
LANCZOS = Image.Resampling.LANCZOS

Way = Callable[[bytes, int], UInt8Array]


def full(data: bytes, side: int) -> UInt8Array:
    """Full decode and Lanczos to a square, as `pipeline.images` does it."""
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data)).convert("RGB")
    return np.array(image.resize((side, side), LANCZOS, reducing_gap=None))


def draft(gap: float) -> Way:
    """Scaled decoding to at least `gap` times the target, then Lanczos."""

    def way(data: bytes, side: int) -> UInt8Array:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        width, height = image.size
        scale = max(s for s in (1, 2, 4, 8) if s == 1 or min(width, height) / s >= gap * side)
        # Rounded down, for Pillow takes the largest scale that leaves no less than is asked for.
        drafted = image.draft(image.mode, (width // scale, height // scale))
        # Where the picture ends in the smaller raster; its last column may be only partly of it.
        box = drafted[1] if drafted else None
        return np.array(image.convert("RGB").resize((side, side), LANCZOS, box=box))

    return way


def reduce(gap: float) -> Way:
    """Full decode, then Pillow's `reducing_gap`."""

    def way(data: bytes, side: int) -> UInt8Array:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data)).convert("RGB")
        return np.array(image.resize((side, side), LANCZOS, reducing_gap=gap))

    return way


WAYS: dict[str, Way] = {
    FULL: full,
    **{f"scaled decoding, gap {gap:g}": draft(gap) for gap in DRAFT_GAPS},
    **{f"reducing_gap={gap:g}": reduce(gap) for gap in REDUCING_GAPS},
}


@dataclasses.dataclass
class Row:
    """Sums of one way at one target.

    Attributes:
        seconds: CPU time of decode and resize, over all pictures.
        psnr: dB against the full way, for each picture that is not equal to it.
        error: squared error of the quantized picture against the full one, likewise, as a multiple
            of the full way's own.
    """

    seconds: float = 0.0
    psnr: list[float] = dataclasses.field(default_factory=list)
    error: list[float] = dataclasses.field(default_factory=list)


def mean_squared_error(a: UInt8Array, b: UInt8Array) -> float:
    """Mean over pixels and channels, in levels squared."""
    difference = a.astype(np.int32) - b
    return float((difference * difference).mean())


def quantized(image: UInt8Array) -> UInt8Array:
    """The picture in 32 colours."""
    indices, palette = quantize(image)
    return np.asarray(palette[indices])


def measure(files: list[Path], side: int) -> dict[str, Row]:
    """Returns a row for each way."""
    rows = {name: Row() for name in WAYS}
    for file in track(files, f"to {side}", console=Console(stderr=True), transient=True):
        data = file.read_bytes()
        reference = full(data, side)
        own = mean_squared_error(quantized(reference), reference)
        for name, way in WAYS.items():
            times = []
            for _ in range(REPEATS):
                start = time.process_time()
                image = way(data, side)
                times.append(time.process_time() - start)
            rows[name].seconds += min(times)
            if error := mean_squared_error(image, reference):
                rows[name].psnr.append(10 * np.log10(255**2 / error))
                rows[name].error.append(mean_squared_error(quantized(image), reference) / own)
    return rows


def report(side: int, rows: dict[str, Row], count: int) -> Table:
    """One row a way."""
    table = Table(title=f"to {side} x {side}", box=None, title_justify="left")
    table.add_column("way")
    for heading in ("CPU ms", "saved %", "changed %", "PSNR mean", "5 %", "least", "error x"):
        table.add_column(heading, justify="right")
    base = rows[FULL].seconds
    for name, row in rows.items():
        cells = [f"{row.seconds / count * 1e3:.2f}", f"{100 * (1 - row.seconds / base):.0f}"]
        cells.append(f"{100 * len(row.psnr) / count:.0f}")
        if row.psnr:
            cells += [f"{np.mean(row.psnr):.1f}", f"{np.percentile(row.psnr, 5):.1f}"]
            cells += [f"{min(row.psnr):.1f}", f"{np.mean(row.error):.3f}"]
        table.add_row(name, *cells)
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True, help="folder of *.jpg, recursive")
    parser.add_argument("--limit", type=int, default=230, help="pictures, evenly spaced")
    options = parser.parse_args()
    console = Console(width=120)
    files = find_pictures(options.images, options.limit, skip=[])
    sizes = [np.prod(Image.open(file).size) for file in files]
    warm_up()
    for side in TARGETS:
        console.print(report(side, measure(files, side), len(files)))
    console.print(f"{len(files)} pictures, mean {np.mean(sizes) / 1e6:.2f} megapixels; {machine()}")


if __name__ == "__main__":
    main()
