"""Runs that are ended in the middle, by whatever it may be, and the same command once more.

The end is always that of a run which nothing disturbed, byte for byte.
"""

import itertools
import json
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import __main__ as cli
from pipeline import job
from pipeline.config import PictureOptions
from tests.pipeline import folders
from tests.pipeline.test_job import IN_PROCESS, content

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 120
SLOW = ("--quantizer=sklearn", "--image_size=160", "--examples_per_shard=1")


def preprocess(data_dir: object, output_dir: object, *flags: str) -> list[str]:
    arguments = [f"--data_dir={data_dir}", f"--output_dir={output_dir}", *SLOW, *flags]
    return ["preprocess", *arguments]


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Returns a data folder with one bad picture, and what an undisturbed run makes of it."""
    data_dir = folders.draw(tmp_path_factory.mktemp("slow") / "data", train=12, test=2)
    with open(os.path.join(data_dir, "train", folders.CLASSES[0], "00003.jpg"), "wb") as file:
        file.write(b"no picture")
    output_dir = tmp_path_factory.mktemp("undisturbed")
    assert cli.main(preprocess(data_dir, output_dir, "--max_reject_fraction=1", *IN_PROCESS)) == 0
    return data_dir, content(str(output_dir))


def start(data_dir, output, log, workers: int, **options) -> subprocess.Popen:
    """Starts the command as a user does, in a process group of its own."""
    flags = ["--max_reject_fraction=1", f"--direct_num_workers={workers}"]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *preprocess(data_dir, output, *flags)],
        cwd=ROOT,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **options,
    )


def finished(output: pathlib.Path) -> list[pathlib.Path]:
    return sorted(output.glob("_shards/stanford_cars-*.json"))


def temporaries(output: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in output.rglob("*") if ".tmp" in path.name]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(ready) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_again(capsys, slow, output: pathlib.Path) -> None:
    """Runs the same command to its end, which keeps what is finished."""
    data_dir, undisturbed = slow
    kept = {path: path.stat().st_mtime_ns for path in finished(output)}
    sidecars = [json.loads(path.read_text()) for path in kept]
    done = [sidecar["records"] + len(sidecar["rejects"]) for sidecar in sidecars]
    assert not (output / "dataset_info.json").exists()
    capsys.readouterr()
    assert cli.main(preprocess(data_dir, output, "--max_reject_fraction=1", *IN_PROCESS)) == 0
    told = re.search(r"; (\d+) were done before", capsys.readouterr().out)
    assert (int(told[1]) if told else 0) == sum(done)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert content(str(output)) == undisturbed
    assert temporaries(output) == []


def interrupt(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)


def interrupt_group(process: subprocess.Popen) -> None:  # what a terminal does at Ctrl-C
    os.killpg(process.pid, signal.SIGINT)


def kill(process: subprocess.Popen) -> None:
    process.kill()


def kill_worker(process: subprocess.Popen) -> None:  # as the kernel does when memory runs out
    psutil.Process(process.pid).children()[0].kill()


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (interrupt_group, 130, "interrupted; the same command continues"),
        (interrupt, 130, "interrupted; the same command continues"),
        (kill, -9, ""),
        (kill_worker, 1, "error: a worker process was killed, or ran out of memory; the same"),
    ],
)
def test_a_run_ended_in_the_middle_leaves_no_worker_and_the_next_ends_it(
    capsys, slow, tmp_path, end, code, told
):
    output, log = tmp_path / "out", tmp_path / "log"
    workers = 2 if end is kill_worker else 1
    with log.open("wb") as stream, start(slow[0], output, stream, workers) as process:
        try:
            wait_until(lambda: finished(output))
            children = psutil.Process(process.pid).children(recursive=True)
            end(process)
            assert process.wait(SECONDS) == code
        finally:
            process.kill()
    assert len(children) == workers
    wait_until(lambda: not any(map(is_alive, children)))
    assert told in log.read_text()
    assert "Traceback" not in log.read_text()
    if end is interrupt_group:  # elsewhere a worker may leave a hidden file, for the next to remove
        assert temporaries(output) == []
    run_again(capsys, slow, output)


def test_a_full_disk_is_told_in_a_line_and_costs_only_what_was_not_finished(capsys, slow, tmp_path):
    largest = max(map(len, slow[1].values()))

    def limit() -> None:  # the largest shard does not fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))

    output, log = tmp_path / "out", tmp_path / "log"
    with (
        log.open("wb") as stream,
        start(slow[0], output, stream, workers=1, preexec_fn=limit) as process,
    ):
        assert process.wait(SECONDS) == 1
    [line] = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: \[Errno 27\] File too large.*; the same command continues.*", line)
    assert temporaries(output) == []
    run_again(capsys, slow, output)


# --- ended at every single step


RGB = PictureOptions(image_size=16, colors=0, encoding="rgb")  # a process has no kernels to load


def run_until(data_dir: str, output_dir: str, step: int) -> None:
    """Runs the job in this process, which dies where the file `step` would get its final name."""
    replace, steps = os.replace, itertools.count()

    def dying(source: str, target: str) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = dying
    made = folders.claimed(data_dir, output_dir, RGB)
    job.run(output_dir, made, 1.0, PipelineOptions(IN_PROCESS))


def test_wherever_a_run_is_killed_the_next_ends_as_if_nothing_had_been(tmp_path):
    data_dir = folders.draw(tmp_path / "data", train=6, test=2)
    with open(os.path.join(data_dir, "train", folders.CLASSES[0], "00003.jpg"), "wb") as file:
        file.write(b"no picture")
    # Each run in a process of its own, forked from one that has imported everything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.job", "pipeline.layouts"])

    def end_of_run(output: pathlib.Path, step: int) -> int:
        process = context.Process(target=run_until, args=(data_dir, str(output), step))
        process.start()
        process.join(SECONDS)
        return process.exitcode

    undisturbed = tmp_path / "undisturbed"
    assert end_of_run(undisturbed, step=-1) == 0
    # 3 files of the claim, 3 shards with their sidecars, 6 files of the commit.
    for step in range(15):
        output = tmp_path / f"killed-at-{step}"
        assert end_of_run(output, step) == -signal.SIGKILL
        there = {path.name for path in output.rglob("*") if path.is_file()}
        assert "dataset_info.json" not in there
        assert end_of_run(output, step=-1) == 0
        assert content(str(output)) == content(str(undisturbed))
    assert end_of_run(tmp_path / "never", step=15) == 0
