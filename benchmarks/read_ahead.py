"""Measures what a distant store costs a worker: pictures a second from gs:// and from a local disk.

    python -m benchmarks.read_ahead --images DIR [--pictures 512] [--rounds 3] [--delay 0.05]

One worker process at a time makes whole shards of real pictures as the job does: it looks for the
sidecar, checks the claim on the folder, reads, converts, writes shard and sidecar. The bucket is an
emulator on loopback in a process of its own, which waits before it answers a request that reads.
The storages take turns in each round and the quickest round counts, so that what else the machine
does weighs little. The peer is the same worker reading one picture after the other.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks.quantize import machine
from pipeline import layouts, shards
from pipeline import plan as plans
from pipeline.config import JobOptions, PictureOptions
from pipeline.job import WriteShard
from pipeline.listing import CarImage
from pipeline.read_ahead import read_ahead
from tests.engines.gcs_emulator import GcsEmulator, run_gcs_emulator

LOCAL = "local disk"


@dataclasses.dataclass(frozen=True)
class Run:
    """One worker that made every shard.

    Attributes:
        pictures: converted.
        seconds: of wall time.
        cpu_seconds: of the worker, all its threads.
        waited_seconds: in which the converting thread stood still for the next picture.
    """

    pictures: int
    seconds: float
    cpu_seconds: float
    waited_seconds: float

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.pictures / self.seconds


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a storage, and how it is read."""

    storage: str
    reading: str
    environment: dict[str, str]
    data_dir: str
    output_dir: str


def one_by_one(
    read: Callable[[CarImage], bytes], items: Iterable[CarImage], *_: Any
) -> Generator[bytes]:
    """Stands in for `read_ahead` without its threads."""
    yield from map(read, items)


def waiting(contents: Iterator[bytes], told: list[float]) -> Generator[bytes]:
    """Yields the contents and appends the seconds that each was waited for."""
    while True:
        start = time.perf_counter()
        content = next(contents, None)
        told.append(time.perf_counter() - start)
        if content is None:
            return
        yield content


def work(data_dir: str, output_dir: str, examples_per_shard: int, ahead: bool) -> Run:
    """Makes every shard in this process, one after the other."""
    options = JobOptions(data_dir, output_dir, examples_per_shard=examples_per_shard)
    listing = layouts.find(options.data_dir, options.layout)
    plan = plans.make(listing, PictureOptions(), options.examples_per_shard)
    plans.claim(options, plan, listing)
    groups: dict[tuple[str, int], list[CarImage]] = {
        (shard.split, shard.index): [] for shard in plan.all_shards()
    }
    for index in range(plan.manifests):
        for image in plans.read_manifest(plans.manifest_path(output_dir, index)):
            shard = shards.shard_of(image.id, plan.splits[image.split].shards)
            groups[image.split, shard].append(image)
    writer = WriteShard(output_dir, plan)
    writer.setup()
    first = next(image for images in groups.values() for image in images)
    writer._converter(first, shards._read(first))  # compiles, connects
    reader: Callable[..., Iterator[bytes]] = read_ahead if ahead else one_by_one
    waits: list[float] = []

    def timed(*arguments: Any) -> Iterator[bytes]:
        return waiting(reader(*arguments), waits)

    with mock.patch.object(shards, "read_ahead", timed):
        start, cpu_start = time.perf_counter(), time.process_time()
        for key, images in groups.items():
            list(writer.process((key, {"images": images})))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Run(plan.found, seconds, cpu_seconds, sum(waits))


def measure(row: Row, examples_per_shard: int) -> Run:
    """Runs `work` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.read_ahead", "--worker", row.reading]
    command += [row.data_dir, row.output_dir, str(examples_per_shard)]
    result = subprocess.run(
        command,
        env={**os.environ, **row.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"a worker failed:\n{result.stderr[-3000:]}")
    return Run(**json.loads(result.stdout.splitlines()[-1]))


def gather(images: Path, pictures: int, folder: Path) -> None:
    """Copies pictures into the layout of class folders, again from the first when there are few."""
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        sys.exit(f"no JPEG in {images}")
    target = folder / "train" / "car"
    target.mkdir(parents=True)
    for index in range(pictures):
        shutil.copy(found[index % len(found)], target / f"{index:05d}.jpg")


@contextlib.contextmanager
def buckets(
    work_dir: Path, data: Path, delays: Iterable[float]
) -> Iterator[dict[float, GcsEmulator]]:
    """Runs an emulator for each delay, with the pictures in it."""
    with contextlib.ExitStack() as stack:
        running = {}
        for index, delay in enumerate(delays):
            emulator = stack.enter_context(run_gcs_emulator(work_dir / f"gcs-{index}", delay))
            emulator.upload(data, "data")
            running[delay] = emulator
        yield running


def rows_of(data: Path, running: dict[float, GcsEmulator]) -> list[Row]:
    """Returns the lines of the table, the one that all others are compared with first."""
    rows = [Row(LOCAL, reading, {}, str(data), "") for reading in ("ahead", "one by one")]
    for delay, emulator in running.items():
        name = f"gs://, {1000 * delay:.0f} ms a read" if delay else "gs://, no delay"
        for reading in ("ahead", "one by one"):
            rows.append(Row(name, reading, emulator.environment, "gs://cars/data", "gs://cars/out"))
    return rows


def table(rows: list[Row], runs: list[list[Run]]) -> Table:
    """Returns the result, with the quickest run of each row."""
    best = [min(of_row, key=lambda run: run.seconds) for of_row in runs]
    result = Table("storage", "reading", *("pictures/s", "of local", "waiting", "CPU ms/picture"))
    for column in result.columns[2:]:
        column.justify = "right"
    for row, run in zip(rows, best, strict=True):
        result.add_row(
            row.storage,
            row.reading,
            f"{run.rate:.1f}",
            f"{run.rate / best[0].rate:.2f}",
            f"{run.waited_seconds / run.seconds:.1%}",
            f"{1000 * run.cpu_seconds / run.pictures:.1f}",
        )
    return result


def main() -> None:
    """Measures and prints."""
    if sys.argv[1:2] == ["--worker"]:
        reading, data_dir, output_dir, examples_per_shard = sys.argv[2:]
        run = work(data_dir, output_dir, int(examples_per_shard), reading == "ahead")
        print(json.dumps(dataclasses.asdict(run)))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--pictures", type=int, default=512, help="converted in each run")
    parser.add_argument("--examples_per_shard", type=int, default=JobOptions.examples_per_shard)
    parser.add_argument("--rounds", type=int, default=3, help="of which the quickest counts")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds added to a read")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as name:
        work_dir = Path(name)
        gather(options.images, options.pictures, work_dir / "data")
        with buckets(work_dir, work_dir / "data", (0.0, options.delay)) as running:
            rows = rows_of(work_dir / "data", running)
            runs: list[list[Run]] = [[] for _ in rows]
            for turn in range(options.rounds):
                for row, of_row in zip(rows, runs, strict=True):
                    # A folder of its own, or the second round would skip every shard.
                    out = f"{row.output_dir or work_dir}/{row.reading.replace(' ', '-')}-{turn}"
                    fresh = dataclasses.replace(row, output_dir=out)
                    of_row.append(measure(fresh, options.examples_per_shard))
        console.print(f"{options.pictures} pictures of {options.images}; {machine()}")
        console.print(table(rows, runs))


if __name__ == "__main__":
    main()
