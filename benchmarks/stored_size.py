"""What quantization costs at the size the network sees, over the side at which pictures are stored.

    python -m benchmarks.stored_size --images=DIR

Each picture is squashed to a side, quantized there, and reduced to the network's side as evaluation
does it (antialiased, bilinear). The error is against the same picture in 24-bit colour. A picture
stored larger than it is seen averages several quantized pixels into each pixel seen, so its colours
are more than its palette's.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.quantize import quantize

SIDES = (128, 144, 160, 176, 192, 224, 256)
COLORS = (8, 16, 32, 64)


def reduced(picture: np.ndarray, side: int) -> np.ndarray:
    """Returns uint8 (H, W, 3) at (side, side, 3) as the network sees it, float64."""
    image = Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float64)


def squared_errors(path: Path, seen: int) -> np.ndarray:
    """Returns the mean squared error per channel, (sides, colours), of one picture."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    errors = np.empty((len(SIDES), len(COLORS)))
    for row, side in enumerate(SIDES):
        stored = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))
        exact = reduced(stored, seen)
        for column, colors in enumerate(COLORS):
            indices, palette = quantize(stored, colors)
            errors[row, column] = np.square(reduced(palette[indices], seen) - exact).mean()
    return errors


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True, help="folder of *.jpg, recursive")
    parser.add_argument("--limit", type=int, default=300, help="pictures, drawn with seed 0")
    parser.add_argument("--seen", type=int, default=128, help="side the network sees, in pixels")
    options = parser.parse_args()
    console = Console()
    files = sorted(options.images.rglob("*.jpg"))
    files = random.Random(0).sample(files, min(options.limit, len(files)))
    if not files:
        parser.error(f"--images={options.images} holds no *.jpg")
    errors = [squared_errors(file, options.seen) for file in track(files, console=console)]
    table = Table(title=f"error at {options.seen} pixels, levels (root of the mean square)")
    table.add_column("stored side")
    for colors in COLORS:
        table.add_column(f"{colors} colours", justify="right")
    for side, row in zip(SIDES, np.sqrt(np.mean(errors, axis=0)), strict=True):
        table.add_row(str(side), *(f"{value:.2f}" for value in row))
    console.print(table)


if __name__ == "__main__":
    main()
