"""Measures the local job: its CPU time against the sum of its parts, two workers, memory, time.

    python -m benchmarks.preprocess --images DIR [--copies 2 10] [--repeats 2] [--sample 10]

Runs `python -m pipeline preprocess` as a user does, on the pictures of DIR, each linked several
times under other ids, with one worker and with two, in turn. Before and after, the parts are timed
on one thread of this process: read, decode, resize, quantize, encode.

A job of n pictures costs a + b n. Both are read from two sizes: the start, a (interpreters,
imports, kernels, the commit), does not grow; the slope, b, is what a picture costs. CPU time is of
the parent and all its children, and memory is the peak of each process as the kernel keeps it. On a
machine that others use too the clock tells little, so the gain of a second worker is read from the
CPU time of the busiest one, with the clock's beside it.
"""

import argparse
import collections
import dataclasses
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image, JpegImagePlugin
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.quantize import find_pictures, machine, sklearn_all_pixels
from pipeline import tfrecord
from pipeline.class_names import OFFICIAL_CLASS_NAMES
from pipeline.config import PictureOptions
from pipeline.quantize import pad_palette, quantize, warm_up
from pipeline.records import Encoder

PARTS = ("read", "decode", "resize", "quantize", "encode")
ALL_PICTURES = 16_185
EXAMPLES_PER_SHARD = 64  # as many shards for a small set as the whole has by default
POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run of the job took.

    Attributes:
        cpu: seconds of the parent and all its children.
        wall: seconds.
        worker_cpu: seconds of the busiest worker: what the work would take on a machine with
            nothing else to do and a core for each.
        worker_mb: peak of the largest worker's resident memory.
        parent_mb: likewise of the parent.
    """

    cpu: float
    wall: float
    worker_cpu: float
    worker_mb: float
    parent_mb: float


# --- the parts, on one thread


def parts_of(file: Path, encoder: Encoder, side: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields each part of the work on one picture, by name; each is to be called once, in turn."""
    state: dict[str, Any] = {}

    def keep(name: str, run: Callable[[], Any]) -> Callable[[], None]:
        return lambda: state.__setitem__(name, run())

    def decode() -> Image.Image:
        return JpegImagePlugin.JpegImageFile(io.BytesIO(state["read"])).convert("RGB")

    def resize() -> Any:
        return np.array(state["decode"].resize((side, side), Image.Resampling.LANCZOS))

    def encode() -> bytes:
        indices, palette = state["quantize"]
        box = (0.0, 0.0, 1.0, 1.0)
        record = encoder.indexed("train/a class/00001", 1, box, indices, pad_palette(palette, 32))
        return tfrecord.frame(record)

    yield "read", keep("read", file.read_bytes)
    yield "decode", keep("decode", decode)
    yield "resize", keep("resize", resize)
    yield "quantize", keep("quantize", lambda: quantize(state["resize"]))
    yield "encode", keep("encode", encode)


def time_parts(files: list[Path]) -> dict[str, float]:
    """Returns the mean CPU seconds a picture of each part."""
    options = PictureOptions()
    encoder = Encoder(options, OFFICIAL_CLASS_NAMES)
    sums: dict[str, float] = collections.defaultdict(float)
    for file in files:
        for name, run in parts_of(file, encoder, options.image_size):
            start = time.thread_time()
            run()
            sums[name] += time.thread_time() - start
    return {name: sums[name] / len(files) for name in PARTS}


# --- the job


def link_pictures(files: list[Path], copies: int, folder: Path) -> None:
    """Makes class folders of links, each picture `copies` times."""
    for copy in range(copies):
        for number, file in enumerate(files):
            name = OFFICIAL_CLASS_NAMES[number % 196].replace("/", "-")
            target = folder / "train" / name / f"{number:05d}-{copy:03d}{file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.resolve())


def look(workers: dict[int, tuple[float, float]], others: dict[int, float]) -> None:
    """Keeps what is seen of each descendant, by process.

    Args:
        workers: CPU seconds and peak of the resident memory in MB.
        others: peak of the resident memory in MB.
    """
    for process in psutil.Process().children(recursive=True):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            times = process.cpu_times()
            is_worker = "pipeline.worker" in process.cmdline()
        except (OSError, psutil.Error):
            continue
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) * 1024 / 1e6
                if is_worker:
                    workers[process.pid] = times.user + times.system, peak
                else:
                    others[process.pid] = peak


def run_job(data: Path, output: Path, workers: int) -> Run:
    """Runs the job once, and checks that it committed."""
    command = [sys.executable, "-m", "pipeline", "preprocess", f"--data_dir={data}"]
    command += [f"--output_dir={output}", f"--examples_per_shard={EXAMPLES_PER_SHARD}"]
    command += [f"--direct_num_workers={workers}"]
    seen: dict[int, tuple[float, float]] = {}
    others: dict[int, float] = {}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            look(seen, others)

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        subprocess.run(command, check=True, capture_output=True)
    finally:
        stop.set()
        watcher.join()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not (output / "dataset_info.json").exists():
        raise RuntimeError(f"{' '.join(command)} did not finish")
    return Run(
        cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        wall=wall,
        worker_cpu=max(cpu for cpu, _ in seen.values()),
        worker_mb=max(peak for _, peak in seen.values()),
        parent_mb=max(others.values()),
    )


def time_jobs(
    files: list[Path], copies: list[int], repeats: int, console: Console
) -> dict[tuple[int, int], list[Run]]:
    """Returns the runs by number of pictures and of workers."""
    runs: dict[tuple[int, int], list[Run]] = collections.defaultdict(list)
    for repeat in range(repeats):
        for count in copies:
            for workers in (1, 2):
                with tempfile.TemporaryDirectory() as folder:
                    data, output = Path(folder, "data"), Path(folder, "out")
                    link_pictures(files, count, data)
                    run = run_job(data, output, workers)
                runs[count * len(files), workers].append(run)
                console.print(
                    f"run {repeat + 1}: {count * len(files):,} pictures, {workers} workers: {run}",
                    style="dim",
                )
    return runs


def line(points: dict[int, float]) -> tuple[float, float]:
    """Returns start and slope of the line through two points."""
    (small, at_small), (large, at_large) = sorted(points.items())
    slope = (at_large - at_small) / (large - small)
    return at_small - slope * small, slope


# --- the notebook's method


def time_notebook(files: list[Path], side: int) -> float:
    """Returns mean CPU seconds a picture of decode and KMeans; resized to `side` unless 0."""
    times = []
    for file in files:
        start = time.process_time()
        image = Image.open(file).convert("RGB")
        if side:
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        sklearn_all_pixels(np.array(image), 1)
        times.append(time.process_time() - start)
    return statistics.mean(times)


# --- the report


def report(
    parts: dict[str, float],
    runs: dict[tuple[int, int], list[Run]],
    notebook: dict[str, float],
) -> Iterator[Table]:
    """Yields the tables."""
    total = sum(parts.values())
    sizes = sorted({count for count, _ in runs})
    cpu, wall, busiest = (
        {
            workers: line({n: min(getattr(run, field) for run in runs[n, workers]) for n in sizes})
            for workers in (1, 2)
        }
        for field in ("cpu", "wall", "worker_cpu")
    )

    table = Table(title="Parts on one thread, CPU ms a picture", box=None, title_justify="left")
    for name in (*PARTS, "sum"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{parts[name] * 1e3:.2f}" for name in PARTS), f"{total * 1e3:.2f}")
    yield table

    table = Table(title="The job, least of its runs", box=None, title_justify="left")
    for heading in ("workers", "pictures", "CPU s", "/ sum of parts", "wall s", "a second"):
        table.add_column(heading, justify="right")
    for heading in ("worker MB", "parent MB"):
        table.add_column(heading, justify="right")
    for workers in (1, 2):
        for n in sizes:
            these = runs[n, workers]
            least = min(run.cpu for run in these)
            seconds = min(run.wall for run in these)
            table.add_row(
                f"{workers}",
                f"{n:,}",
                f"{least:.1f}",
                f"{least / (n * total):.2f}",
                f"{seconds:.1f}",
                f"{n / seconds:.0f}",
                f"{max(run.worker_mb for run in these):.0f}",
                f"{max(run.parent_mb for run in these):.0f}",
            )
    yield table

    table = Table(title="What follows", box=None, title_justify="left")
    table.add_column("")
    for workers in (1, 2):
        table.add_column(f"{workers} workers", justify="right")
    rows: list[tuple[str, Callable[[int], str]]] = [
        ("start, CPU s", lambda w: f"{cpu[w][0]:.1f}"),
        ("slope, CPU ms a picture", lambda w: f"{cpu[w][1] * 1e3:.2f}"),
        ("slope / sum of parts (goal 1.25)", lambda w: f"{cpu[w][1] / total:.2f}"),
        (
            f"whole job of {ALL_PICTURES:,} / sum of parts (goal 1.25)",
            lambda w: f"{(cpu[w][0] + cpu[w][1] * ALL_PICTURES) / (total * ALL_PICTURES):.2f}",
        ),
        ("busiest worker, CPU ms a picture", lambda w: f"{busiest[w][1] * 1e3:.2f}"),
        ("as fast as one worker (goal 1.8)", lambda w: f"{busiest[1][1] / busiest[w][1]:.2f}"),
        ("by the clock, whatever else ran", lambda w: f"{wall[1][1] / wall[w][1]:.2f}"),
        (
            f"{ALL_PICTURES:,} pictures, by the busiest worker",
            lambda w: f"{(busiest[w][0] + busiest[w][1] * ALL_PICTURES) / 60:.1f} min",
        ),
        (
            f"{ALL_PICTURES:,} pictures, by the clock",
            lambda w: f"{(wall[w][0] + wall[w][1] * ALL_PICTURES) / 60:.1f} min",
        ),
    ]
    for name, cell in rows:
        table.add_row(name, cell(1), cell(2))
    yield table

    table = Table(title="The notebook's method, one thread", box=None, title_justify="left")
    for heading in ("KMeans on all pixels", "CPU ms a picture", f"{ALL_PICTURES:,} pictures"):
        table.add_column(heading, justify="left" if not table.columns else "right")
    for name, seconds in notebook.items():
        table.add_row(name, f"{seconds * 1e3:,.0f}", f"{seconds * ALL_PICTURES / 60:,.0f} min")
    yield table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True, help="folder of *.jpg, recursive")
    parser.add_argument("--limit", type=int, default=230, help="pictures, evenly spaced")
    parser.add_argument("--copies", type=int, nargs=2, default=[2, 10], help="links to each")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind")
    parser.add_argument("--sample", type=int, default=10, help="pictures for the notebook's method")
    options = parser.parse_args()
    console = Console(width=120)
    files = find_pictures(options.images, options.limit, skip=[])
    sizes = [np.prod(Image.open(file).size) for file in files]
    warm_up()
    time_parts(files)  # for the page cache
    before = time_parts(files)
    runs = time_jobs(files, options.copies, options.repeats, console)
    after = time_parts(files)
    parts = {name: min(before[name], after[name]) for name in PARTS}
    with threadpool_limits(limits=1):
        few = find_pictures(options.images, options.sample, skip=[])
        notebook = {
            "at full size": time_notebook(few, 0),
            "at 256 x 256": time_notebook(few, 256),
        }
    for table in report(parts, runs, notebook):
        console.print(table)
        console.print()
    console.print(
        f"{len(files)} pictures, mean {np.mean(sizes) / 1e6:.2f} megapixels, "
        f"{EXAMPLES_PER_SHARD} examples a shard; {os.cpu_count()} cores; {machine()}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
