"""Measures the stages of the job that handle every picture's path, on millions that do not exist.

    python -m benchmarks.scale [--pictures 1000000 10000000] [--work DIR]

The real code runs on made-up files, each stage in a process of its own: listing, plan and claim as
the launcher does them; reading the manifests and dealing rows to shards as the workers do; the
commit, on made-up sidecars; and `verify`'s accounts, in the worst case that every record is lost.
CPU time, and the peak of the resident memory beyond what the process took to start. Linux.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from rich.console import Console
from rich.table import Table

from benchmarks.quantize import machine
from pipeline import layouts, verify
from pipeline import plan as plans
from pipeline.class_names import OFFICIAL_CLASS_NAMES
from pipeline.config import JobOptions, PictureOptions
from pipeline.finish import finish
from pipeline.folders import Contents, File
from pipeline.job import Preprocess, ShardKey
from pipeline.listing import CarImage
from pipeline.shards import SIDECAR_FOLDER, Sidecar, shard_of
from pipeline.spool import Sorter
from pipeline.statistics import AREA_BIN, Statistics

CLASSES = [name.replace("/", "-") for name in OFFICIAL_CLASS_NAMES]
TEST_EVERY = 5  # one picture in five is of the test split
EQUAL_EVERY = 10_000  # one picture in as many has the pixels of another
ANNOTATED = 100_000
PICTURE = PictureOptions()


def peak_mb() -> float:
    """Peak of the resident memory since `forget_peak`, in MB."""
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    """Sets the peak back to what is resident now. Not getrusage, whose peak a child inherits."""
    Path("/proc/self/clear_refs").write_text("5")


@dataclasses.dataclass
class Step:
    """What one step took.

    Attributes:
        name: what was done.
        cpu: seconds.
        wall: seconds.
        peak: MB at the peak.
        beyond: MB at the peak beyond what was resident when the process had started.
        told: a remark.
    """

    name: str
    cpu: float
    wall: float
    peak: float
    beyond: float
    told: str = ""


class Steps:
    """Measures one step after another."""

    def __init__(self) -> None:
        forget_peak()
        self._start = peak_mb()
        self.taken: list[Step] = []

    def measure(self, name: str, run: Callable[[], Any], tell: Callable[[Any], str]) -> Any:
        """Runs a step and returns its result."""
        forget_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = peak_mb()
        self.taken.append(Step(name, cpu, wall, peak, peak - self._start, tell(result)))
        return result


# --- stages, each in its own process


def made_up_files(count: int) -> Iterator[File]:
    """Yields `count` files of class folders in no order, as a listing would."""
    rng = random.Random(0)
    for number in range(count):
        split = "test" if number % TEST_EVERY == 0 else "train"
        path = f"{split}/{CLASSES[rng.randrange(len(CLASSES))]}/{number:09d}.jpg"
        yield File(f"gs://some-bucket/cars/{path}", path, 60_000 + number % 7, 1.7e9 + number)


def launcher(count: int, work: Path) -> list[Step]:
    """What the launcher does before the job, and the job's graph."""
    steps = Steps()
    options = JobOptions("gs://some-bucket/cars", str(work))
    listing = steps.measure(
        "list, sort by id",
        lambda: layouts.of_contents(Contents.of_files(options.data_dir, made_up_files(count))),
        lambda listing: f"{len(listing.images):,} pictures",
    )
    plan = steps.measure(
        "plan, with the input's hash",
        lambda: plans.make(listing, PICTURE, options.examples_per_shard),
        lambda plan: f"{len(plan.all_shards()):,} shards",
    )
    steps.measure(
        "claim: write the manifests",
        lambda: plans.claim(options, plan, listing),
        lambda _: f"{plan.manifests:,} files, {size_mb(work / SIDECAR_FOLDER):,.0f} MB",
    )

    def graph() -> int:
        pipeline = beam.Pipeline()
        pipeline | Preprocess(str(work), plan, 0.0)
        return len(pipeline.to_runner_api().SerializeToString())

    steps.measure("the job's graph", graph, lambda size: f"{size / 1000:,.0f} kB")
    return steps.taken


def deal(count: int, work: Path) -> list[Step]:
    """What the workers do with the rows before a picture is read."""
    steps = Steps()
    plan = read_plan(work)
    coder = beam.coders.registry.get_coder(tuple[ShardKey, CarImage])
    counts: collections.Counter[ShardKey] = collections.Counter()

    def rows() -> int:
        size = 0
        for index in range(plan.manifests):
            path = plans.manifest_path(str(work), index)
            for number, image in enumerate(plans.read_manifest(path)):
                key = image.split, shard_of(image.id, plan.splits[image.split].shards)
                counts[key] += 1
                if number % 100 == 0:
                    size += len(coder.encode((key, image)))
        return 100 * size // count

    steps.measure(
        "read the manifests, deal to shards",
        rows,
        lambda size: (
            f"{size} bytes a row are shuffled; {min(counts.values())} to "
            f"{max(counts.values())} rows a shard"
        ),
    )
    return steps.taken


def make_sidecars(count: int, work: Path) -> list[Step]:
    """Writes the sidecars that the workers would have left, and shards without content."""
    plan = read_plan(work)
    sorter = Sorter(columns=4, by=3)
    sorter.extend(
        (row.split, shard_of(row.id, plan.splits[row.split].shards), row.id, row.label)
        for row in plans.read_manifests(str(work), plan)
    )
    rows = sorter.sorted(lambda _split, _shard, id, label: (id, label)).groups(2)
    number = 0
    for shard in plan.all_shards():
        contents = []
        for id, label in rows.get((shard.split, shard.index), ()):
            number += 1
            seed = number if number % EQUAL_EVERY else number - 1
            contents.append((hashlib.sha256(str(seed).encode()).hexdigest()[:32], id, label))
        labels = collections.Counter(label for _, _, label in contents)
        pictures = len(contents)
        bins = {600: pictures} if pictures else {}
        sidecar = Sidecar(
            fingerprint=plan.fingerprint,
            shard=shard,
            records=pictures,
            bytes=0,
            sha256=hashlib.sha256().hexdigest(),
            rejects=(),
            statistics=Statistics(
                pictures=pictures,
                exact=pictures,
                labels=labels,
                source_widths=bins,
                source_heights=bins,
                source_areas={AREA_BIN: pictures} if pictures else {},
            ),
            contents=tuple(contents),
            thumbnails=(),
        )
        (work / shard.sidecar_name).write_text(json.dumps(sidecar.to_json(), indent=1))
        (work / shard.file_name).touch()
    return []


def commit(count: int, work: Path) -> list[Step]:
    """The last step of the job."""
    steps = Steps()
    plan = read_plan(work)
    names = (plans.DATASET_INFO, plans.REPORT_JSON, plans.REPORT_HTML)

    def tell(_: Any) -> str:
        sizes = (f"{name} {(work / name).stat().st_size / 1e6:.2f} MB" for name in names)
        return f"reads {size_mb(work / SIDECAR_FOLDER):,.0f} MB; " + ", ".join(sizes)

    steps.measure("commit", lambda: finish(str(work), plan, 0.0), tell)
    return steps.taken


def check(count: int, work: Path) -> list[Step]:
    """`verify` where each of the records is lost, which is the most that it can have to tell."""
    steps = Steps()
    steps.measure(
        "verify, every record lost",
        lambda: sum("in no shard" in problem for problem in verify.verify(str(work))),
        lambda lost: f"{lost:,} told to be lost",
    )
    return steps.taken


def annotated(count: int, work: Path) -> list[Step]:
    """The stated exception: annotation files are read whole."""
    steps = Steps()
    files = list(made_up_files(ANNOTATED))
    folder = work / "annotations"
    folder.mkdir()
    (folder / "names.csv").write_text("".join(f"{name}\n" for name in CLASSES))
    for split in ("train", "test"):
        (folder / f"anno_{split}.csv").write_text(
            "".join(
                f"{file.name},1,2,300,400,{CLASSES.index(file.folders[-1]) + 1}\n"
                for file in files
                if file.folders[0] == split
            )
        )
    csv = [File(str(path), path.name, path.stat().st_size, 0.0) for path in folder.iterdir()]
    steps.measure(
        f"list, {ANNOTATED:,} annotated by CSV",
        lambda: layouts.of_contents(Contents.of_files("data", iter([*files, *csv]))),
        lambda listing: f"{len(listing.images):,} pictures",
    )
    return steps.taken


STAGES = {
    stage.__name__: stage for stage in (launcher, deal, make_sidecars, commit, check, annotated)
}


# --- the program


def read_plan(work: Path) -> plans.Plan:
    """Returns the plan that the first stage left."""
    plan = plans.read(str(work))
    assert plan is not None
    return plan


def size_mb(folder: Path) -> float:
    """Size of the files in a folder, in MB."""
    return sum(entry.stat().st_size for entry in os.scandir(folder)) / 1e6


def run_stage(stage: str, count: int, work: Path) -> list[Step]:
    """Runs a stage in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", f"--work={work}"]
    command += [f"--pictures={count}", f"--stage={stage}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return [Step(**step) for step in json.loads(done.stdout.splitlines()[-1])]


def report(taken: dict[int, list[Step]]) -> Table:
    """One row a step, a group of columns a number of pictures."""
    table = Table(box=None)
    table.add_column("stage")
    for count in taken:
        for heading in (f"{count:,}: CPU s", "µs a picture", "peak MB", "beyond start"):
            table.add_column(heading, justify="right")
    table.add_column(f"at {max(taken):,}")
    for steps in zip(*taken.values(), strict=True):
        cells = []
        for count, step in zip(taken, steps, strict=True):
            cells += [f"{step.cpu:,.1f}", f"{step.cpu / count * 1e6:,.1f}"]
            cells += [f"{step.peak:,.0f}", f"{step.beyond:,.0f}"]
        table.add_row(steps[0].name, *cells, steps[-1].told)
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--work", type=Path, help="folder for some GB; default: a temporary one")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        steps = STAGES[options.stage](options.pictures[0], options.work)
        print(json.dumps([dataclasses.asdict(step) for step in steps]))
        return
    console = Console(width=200)
    taken: dict[int, list[Step]] = {}
    for count in options.pictures:
        work = Path(tempfile.mkdtemp(dir=options.work))
        try:
            stages = [stage for stage in STAGES if stage != "annotated"]
            taken[count] = []
            for stage in stages:
                console.print(f"{count:,} pictures: {stage}", style="dim")
                taken[count] += run_stage(stage, count, work)
        finally:
            shutil.rmtree(work)
    console.print(report(taken))
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        [step] = run_stage("annotated", ANNOTATED, Path(folder))
    console.print(f"{step.name}: {step.cpu:.1f} s, {step.beyond:,.0f} MB beyond the start")
    console.print(f"{machine()}, SQLite by sqlite3", soft_wrap=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    console.print(f"{used.ru_utime + used.ru_stime:,.0f} s of CPU in all")


if __name__ == "__main__":
    main()
