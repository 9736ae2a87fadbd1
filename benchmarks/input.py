"""Measures the road from shard to batch against every other way to store and load the pictures.

    python -m benchmarks.input --images DIR [--originals DIR] [--work DIR] [--rows REGEX]

The pictures are preprocessed once into the work folder, in all encodings, and written in the other
formats (`benchmarks.formats`). Each loader (`benchmarks.loaders`) runs in a process of its own,
first on one core for the CPU time of a picture, then on all cores for the wall time; the loaders
take turns in short rounds (`benchmarks.rounds`). All files are in the page cache.

With --throttle MB a second, each loader then reads its files once more, from a disk that the kernel
holds to that rate (`benchmarks.throttle`).
"""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import formats, loaders, rounds, throttle
from benchmarks.formats import SPLIT, Work
from benchmarks.loaders import BATCH, LOADERS, Loader

_READ_AT_ONCE = 1 << 24
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}  # as trainer.data


def measure(
    rows: Sequence[Loader], work: Work, cores: Sequence[int], count: int, console: Console
) -> dict[str, rounds.Timing]:
    """Returns the timing of each row on the given cores, by name."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for row in rows:
            command = ["-m", "benchmarks.input", "--worker", row.name]
            command += ["--work", str(work.folder), "--size", str(work.image_size)]
            command += ["--cores", ",".join(map(str, cores))]
            workers[row.name] = stack.enter_context(rounds.Worker(command))
        title = f"rounds on {len(cores)} core{'s' * (len(cores) > 1)}"
        return rounds.take_turns(
            workers, count, lambda numbers: track(numbers, title, console=console)
        )


def serve(name: str, work: Work, cores: Sequence[int]) -> None:
    """Runs a row in this process, on the given cores alone."""
    # Before TensorFlow is imported, which counts them then.
    os.sched_setaffinity(0, cores)
    os.environ.update(_QUIET)
    rounds.serve(row_of(name).make(work), BATCH)


def row_of(name: str) -> Loader:
    """Returns a row by its name."""
    return next(row for row in LOADERS if row.name == name)


def read_once(name: str, work: Work) -> None:
    """Reads a row's files once, from the disk, and prints the pictures a second."""
    os.environ.update(_QUIET)
    row = row_of(name)
    batches = work.pictures(row.files) // BATCH - 1
    next(row.make(work))  # imports first
    throttle.drop(files_of(row, work))
    iterator = row.make(work)
    next(iterator)
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    print(batches * BATCH / (time.perf_counter() - start), flush=True)


def throttled(rows: Sequence[Loader], work: Work, megabytes: float) -> Table:
    """Pictures a second of each row from a slow disk, and what its bytes allow."""
    table = Table("loader", "pictures a s", "its bytes allow", box=None)
    for row in rows:
        command = ["-m", "benchmarks.input", "--once", "--worker", row.name]
        command += ["--work", str(work.folder), "--size", str(work.image_size)]
        slow = throttle.limited_reads(work.folder, megabytes * 1e6)
        with slow, rounds.Worker(command) as worker:
            rate = float(worker.ask(""))
        allowed = megabytes * 1e6 / work.bytes_per_picture(row.files)
        table.add_row(row.name, f"{rate:,.0f}", f"{allowed:,.0f}")
    table.caption = f"all cores, from a disk held to {megabytes:g} MB a second"
    return table


def files_of(row: Loader, work: Work) -> list[Path]:
    """Returns the files that a row reads."""
    if row.files in formats.ENCODINGS:
        return [Path(path) for path in work.shards(row.files).split(SPLIT).shard_paths]
    return [Path(work.path(row.files))]


def report(
    rows: Sequence[Loader],
    work: Work,
    one: dict[str, rounds.Timing],
    every: dict[str, rounds.Timing],
) -> Table:
    """One row a loader."""
    table = Table(box=None)
    table.add_column("loader")
    for heading in (
        "kB on disk",
        "µs CPU",
        "a CPU s",
        "× bare",
        "indexed is × it",
        "all cores, a s",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        cpu = float(np.median(one[row.name].cpu))
        ratios = [
            f"{rounds.ratio(one[row.name].cpu, one[loaders.BARE].cpu):.2f}",
            f"{rounds.ratio(one[loaders.INDEXED].cpu, one[row.name].cpu):.2f}",
        ]
        wall = f"{1 / np.median(every[row.name].wall):,.0f}" if every else ""
        size = f"{work.bytes_per_picture(row.files) / 1e3:.1f}"
        table.add_row(row.name, size, f"{cpu * 1e6:.1f}", f"{1 / cpu:,.0f}", *ratios, wall)
    return table


def warm(rows: Sequence[Loader], work: Work) -> None:
    """Reads all files once, so that they lie in the page cache."""
    for path in {path for row in rows for path in files_of(row, work)}:
        with open(path, "rb") as file:
            while file.read(_READ_AT_ONCE):
                pass


def machine() -> str:
    """The CPU and the versions that matter, one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
    packages = ("tensorflow-cpu", "grain", "array-record", "numpy")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return (
        f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {', '.join(versions)}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, help="pictures in a layout of the README")
    parser.add_argument("--originals", type=Path, help="folder of original JPEGs; default: images")
    parser.add_argument("--work", type=Path, default=Path("work/bench-input"), help="kept")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--rounds", type=int, default=20, help="0: only --throttle")
    parser.add_argument("--rows", default="", help="only rows whose name matches; bare, indexed")
    parser.add_argument("--cpu_only", action="store_true", help="leave the wall time out")
    parser.add_argument("--throttle", type=float, default=0.0, help="MB a second; 0: not")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cores", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = Work(options.work, options.size)
    if options.worker:
        if options.once:
            read_once(options.worker, work)
        else:
            serve(options.worker, work, [int(core) for core in options.cores.split(",")])
        return
    if options.images is None:
        parser.error("give --images=DIR")
    console = Console(width=120)
    needed = (loaders.BARE, loaders.INDEXED)
    rows = [row for row in LOADERS if row.name in needed or re.search(options.rows, row.name)]
    files = {row.files for row in rows}
    work.make(files, options.images, options.originals or options.images, console)
    warm(rows, work)
    cores = sorted(os.sched_getaffinity(0))
    if options.rounds:
        one = measure(rows, work, cores[-1:], options.rounds, console)
        every = {} if options.cpu_only else measure(rows, work, cores, options.rounds, console)
        console.print(report(rows, work, one, every))
    if options.throttle:
        distinct = {row.files: row for row in rows if row.name != loaders.BARE}
        console.print(throttled(list(distinct.values()), work, options.throttle))
    console.print(f"{machine()}; batches of {BATCH}, {options.rounds} rounds", soft_wrap=True)


if __name__ == "__main__":
    main()
