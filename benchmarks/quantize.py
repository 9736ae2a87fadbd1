"""Measures `pipeline.quantize` against every other way to 32 colours that Python has.

    python -m benchmarks.quantize --images DIR [--limit 30] [--size 224] [--skip 115 32]

One process, one thread, CPU time. The methods take turns on each picture, so that a busy machine
slows all of them alike. Quick methods run several times and their least time counts. Error is the
mean squared error a channel of the picture with its final uint8 palette. The anchor is a long
k-means: scikit-learn on the distinct colours with their counts, many runs, without tolerance.

The quantizer's settings were chosen on 131 of 230 originals, those that `--limit 115` and `--limit
32` take. `--skip 115 32` leaves them out, so that what is reported is not what was tuned on.

Rows whose package is missing are left out with a note; the `bench` extra brings them.
"""

import argparse
import importlib
import importlib.metadata
import io
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.utils import shuffle
from threadpoolctl import threadpool_limits

from pipeline import histograms, kmeans_kernels
from pipeline.compiled import FloatArray, UInt8Array
from pipeline.quantize import quantize, warm_up

COLORS = 32
NOMINAL_FLOOR_NS = 6.5  # a pixel: histogram 2.0, brute-force assignment 2.7, label sums 1.8
QUICK_SECONDS = 0.2
QUICK_REPEATS = 3
KMEANS_1 = "scikit-learn KMeans, all pixels, n_init=1"
KMEANS_10 = "scikit-learn KMeans, all pixels, n_init=10"
FLOOR = "floor: histogram + exact assignment, no fit"
ANCHOR = "anchor: scikit-learn, distinct colours"
DECODE = "for scale: JPEG decode at full size, Pillow"

Quantized = tuple[Any, UInt8Array]  # labels of any integer type, and the palette
Method = Callable[[UInt8Array], Quantized]


def _rounded(labels: Any, centres: FloatArray) -> Quantized:
    return labels, np.clip(np.rint(centres), 0, 255).astype(np.uint8)


def sklearn_all_pixels(image: UInt8Array, runs: int) -> Quantized:
    """The notebook's method: KMeans on all pixels, k-means++."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    model = KMeans(COLORS, n_init=runs, random_state=0).fit(pixels)
    return _rounded(model.labels_, model.cluster_centers_)


def sklearn_distinct(image: UInt8Array, **options: Any) -> Quantized:
    """KMeans on the distinct colours, weighted by their counts: the same objective."""
    packed = image.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    keys, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([keys >> 16, keys >> 8 & 255, keys & 255], axis=1).astype(np.float32)
    model = KMeans(COLORS, random_state=0, **options).fit(colours, sample_weight=counts)
    return _rounded(model.labels_[inverse], model.cluster_centers_)


def sklearn_sample(image: UInt8Array) -> Quantized:
    """The recipe of scikit-learn's documentation: fit on 1,000 pixels, predict all."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    model = KMeans(COLORS, random_state=0).fit(shuffle(pixels, random_state=0, n_samples=1000))
    return _rounded(model.predict(pixels), model.cluster_centers_)


def sklearn_minibatch(image: UInt8Array) -> Quantized:
    """MiniBatchKMeans with its defaults."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    model = MiniBatchKMeans(COLORS, random_state=0, n_init=1).fit(pixels)
    return _rounded(model.labels_, model.cluster_centers_)


def pillow(image: UInt8Array, method: Image.Quantize) -> Quantized:
    """One of Pillow's methods, without dithering."""
    return _of_palette_image(
        Image.fromarray(image).quantize(COLORS, method, dither=Image.Dither.NONE)
    )


def _of_palette_image(image: Image.Image) -> Quantized:
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return np.asarray(image), palette


def opencv(cv2: Any, image: UInt8Array) -> Quantized:
    """OpenCV's kmeans, k-means++, one attempt, at most 100 iterations, until centres move 0.1."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 100, 0.1)
    _, labels, centres = cv2.kmeans(pixels, COLORS, None, stop, 1, cv2.KMEANS_PP_CENTERS)
    return _rounded(labels.ravel(), centres)


def libimagequant(imagequant: Any, image: UInt8Array) -> Quantized:
    """pngquant's library at quality 100, without dithering."""
    return _of_palette_image(
        imagequant.quantize_pil_image(
            Image.fromarray(image), dithering_level=0.0, max_colors=COLORS, max_quality=100
        )
    )


def faiss_kmeans(faiss: Any, image: UInt8Array) -> Quantized:
    """faiss.Kmeans with its defaults, which sample 256 points a centre."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    model = faiss.Kmeans(3, COLORS, seed=0)
    model.train(pixels)
    return _rounded(model.index.search(pixels, 1)[1].ravel(), model.centroids)


def optional_methods(console: Console) -> Iterator[tuple[str, Method]]:
    """The methods whose packages are installed; says which are not."""
    for package, module, name, method in (
        ("opencv-python-headless", "cv2", "OpenCV kmeans", opencv),
        ("imagequant", "imagequant", "libimagequant, quality 100, no dither", libimagequant),
        ("faiss-cpu", "faiss", "faiss Kmeans, its default sampling", faiss_kmeans),
    ):
        try:
            library = importlib.import_module(module)
        except ImportError:
            console.print(f"left out: {name} needs {package}; pip install '.[bench]'", style="dim")
            continue
        if module == "cv2":
            library.setNumThreads(1)
        if module == "faiss":
            library.omp_set_num_threads(1)
        yield name, lambda image, run=method, library=library: run(library, image)  # type: ignore[misc]


def methods(console: Console) -> dict[str, Method]:
    """All methods by the name of their row."""
    return {
        "ours, fast": lambda image: quantize(image, COLORS),
        "ours, quality": lambda image: quantize(image, COLORS, "quality"),
        KMEANS_1: lambda image: sklearn_all_pixels(image, 1),
        KMEANS_10: lambda image: sklearn_all_pixels(image, 10),
        "scikit-learn KMeans, distinct colours, n_init=1": sklearn_distinct,
        "scikit-learn KMeans, fit on 1,000 pixels": sklearn_sample,
        "scikit-learn MiniBatchKMeans": sklearn_minibatch,
        "Pillow MEDIANCUT": lambda image: pillow(image, Image.Quantize.MEDIANCUT),
        "Pillow MAXCOVERAGE": lambda image: pillow(image, Image.Quantize.MAXCOVERAGE),
        "Pillow FASTOCTREE": lambda image: pillow(image, Image.Quantize.FASTOCTREE),
        **dict(optional_methods(console)),
    }


def mean_squared_error(image: UInt8Array, quantized: Quantized) -> float:
    """Mean over pixels and channels, in levels squared."""
    labels, palette = quantized
    difference = image.astype(np.int32) - palette[labels].reshape(image.shape)
    return float((difference * difference).mean())


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of the process and the result; the least of several times if that is quick."""
    best = float("inf")
    for _ in range(QUICK_REPEATS):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
        if best > QUICK_SECONDS:
            break
    return best, result


def floor_work(image: UInt8Array, palette: UInt8Array) -> None:
    """What no fit can save in this design: count the pixels, assign them, sum them."""
    pixels = image.reshape(-1, 3).view()
    pixels.flags.writeable = False
    keys, bins = histograms.histogram(pixels)
    kmeans_kernels.assign_pixels(pixels, keys, bins, palette.astype(np.float64))


def start_seconds(cache: str, statement: str) -> tuple[float, float]:
    """Wall and CPU seconds of a statement in a new process, its imports included.

    Args:
        cache: folder for compiled kernels and Python's bytecode.
        statement: Python.
    """
    script = (
        f"import time; w = time.perf_counter(); {statement}; "
        "print(time.perf_counter() - w, time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "NUMBA_CACHE_DIR": cache,
            "PYTHONPYCACHEPREFIX": cache,
            "PYTHONDONTWRITEBYTECODE": "",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def evenly_spaced(files: list[Path], limit: int) -> list[Path]:
    """At most `limit` of them."""
    return files[:: max(1, len(files) // limit)][:limit]


def find_pictures(folder: Path, limit: int, skip: list[int]) -> list[Path]:
    """At most `limit` JPEG files below `folder`, evenly spaced in their sorted order.

    Args:
        folder: searched recursively.
        limit: pictures.
        skip: for each number, the pictures that this limit alone would choose are left out.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = sorted(folder.rglob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"no *.jpg below {folder}; give --images a folder of pictures")
    seen = {file for number in skip for file in evenly_spaced(files, number)}
    unseen = [file for file in files if file not in seen]
    if not unseen:
        raise FileNotFoundError(f"--skip {skip} leaves none of {len(files)} pictures in {folder}")
    return evenly_spaced(unseen, limit)


def measure(
    files: list[Path], size: int, restarts: int, rows: dict[str, Method]
) -> tuple[dict[str, list[float]], dict[str, list[float]], list[int]]:
    """CPU seconds and errors by row, and the pictures' numbers of pixels."""
    seconds: dict[str, list[float]] = {name: [] for name in (*rows, FLOOR, DECODE, ANCHOR)}
    errors: dict[str, list[float]] = {name: [] for name in (*rows, ANCHOR)}
    pixels = []
    for file in track(files, "pictures", console=Console(stderr=True)):
        data = file.read_bytes()
        took, decoded = cpu_seconds(lambda data=data: Image.open(io.BytesIO(data)).convert("RGB"))  # type: ignore[misc]
        seconds[DECODE].append(took)
        if size:
            decoded = decoded.resize((size, size), Image.Resampling.BILINEAR)
        image = np.array(decoded)
        pixels.append(image.shape[0] * image.shape[1])
        for name, method in rows.items():
            took, result = cpu_seconds(lambda method=method, image=image: method(image))  # type: ignore[misc]
            seconds[name].append(took)
            errors[name].append(mean_squared_error(image, result))
        palette = quantize(image, COLORS)[1]
        took, _ = cpu_seconds(lambda image=image, palette=palette: floor_work(image, palette))  # type: ignore[misc]
        seconds[FLOOR].append(took)
        if restarts == 0:
            continue
        options = {"n_init": restarts, "max_iter": 1000, "tol": 0.0}
        took, result = cpu_seconds(lambda image=image, o=options: sklearn_distinct(image, **o))  # type: ignore[misc]
        seconds[ANCHOR].append(took)
        errors[ANCHOR].append(mean_squared_error(image, result))
    return seconds, errors, pixels


def report(
    seconds: dict[str, list[float]], errors: dict[str, list[float]], pixels: list[int]
) -> Table:
    """One row a method."""
    table = Table(box=None)
    table.add_column("method")
    for heading in ("CPU ms", "n_init=1 is × it", "× floor", "MSE", "ratio", "≤ n1 %", "≤ n10 %"):
        table.add_column(heading, justify="right")
    for name, times in seconds.items():
        if not times:
            continue
        speed = np.median(np.array(seconds[KMEANS_1]) / times)
        over = np.median(np.array(times) / seconds[FLOOR])
        cells = [f"{np.median(times) * 1e3:,.2f}", f"{speed:,.1f}", f"{over:,.1f}"]
        if errors.get(name):
            mse = np.array(errors[name])
            ratio = f"{(mse / errors[ANCHOR]).mean():.4f}" if errors[ANCHOR] else ""
            cells += [f"{mse.mean():.2f}", ratio]
            for reference in (KMEANS_1, KMEANS_10):
                known = errors.get(reference)
                cells.append(f"{(mse <= known).mean() * 100:.0f}" if known else "")
        table.add_row(name, *cells)
    nominal = np.median(pixels) * NOMINAL_FLOOR_NS * 1e-6
    table.caption = (
        f"{len(pixels)} pictures, mean {np.mean(pixels) / 1e6:.2f} megapixels; medians of CPU "
        f"time, means of MSE a channel and of its ratio to the anchor; {NOMINAL_FLOOR_NS} ns a "
        f"pixel would be {nominal:.2f} ms"
    )
    return table


def machine() -> str:
    """The CPU and the versions that matter, one line."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), cpu)
    versions = []
    for package in (
        "numba", "llvmlite", "numpy", "scikit-learn", "pillow",
        "opencv-python-headless", "imagequant", "faiss-cpu",
    ):  # fmt: skip
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{cpu}; Python {platform.python_version()}, {', '.join(versions)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True, help="folder of *.jpg, recursive")
    parser.add_argument("--limit", type=int, default=30, help="pictures, evenly spaced")
    parser.add_argument(
        "--skip", type=int, nargs="*", default=[], help="leave out what --limit of this would take"
    )
    parser.add_argument("--size", type=int, default=0, help="resize to a square; 0 keeps the size")
    parser.add_argument("--anchor_restarts", type=int, default=20, help="its runs; 0: no anchor")
    parser.add_argument("--rows", default="", help="only rows whose name matches, and KMeans")
    options = parser.parse_args()
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as cache:
        start_seconds(cache, "import pipeline.quantize")  # for the bytecode
        for state in ("cold", "warm"):
            wall, cpu = start_seconds(cache, "import pipeline.quantize as q; q.warm_up()")
            console.print(f"{state} start: {wall:.2f} s, of CPU {cpu:.2f} s")
    files = find_pictures(options.images, options.limit, options.skip)
    rows = {
        name: method
        for name, method in methods(console).items()
        if name == KMEANS_1 or re.search(options.rows, name)
    }
    warm_up()
    with threadpool_limits(limits=1):
        table = report(*measure(files, options.size, options.anchor_restarts, rows))
    console.print(table)
    console.print(f"{machine()}; anchor of {options.anchor_restarts} runs", soft_wrap=True)


if __name__ == "__main__":
    main()
