"""Runs `python -m pipeline preprocess` as a person does: a process of its own, then its files."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 240  # no job of these tests takes longer, on any engine
IN_PROCESS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory")


def command(data_dir: str, output_dir: str, *flags: str) -> list[str]:
    """Returns the command line of a job with small pictures and small shards."""
    return [
        *(sys.executable, "-m", "pipeline", "preprocess"),
        f"--data_dir={data_dir}",
        f"--output_dir={output_dir}",
        "--image_size=64",
        "--examples_per_shard=2",
        *flags,
    ]


def preprocess(
    data_dir: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a job to its end and returns what it printed; fails the test if the job fails."""
    code, printed = try_preprocess(data_dir, output_dir, *flags, environment=environment)
    assert code == 0, printed[-4000:]
    return printed


def try_preprocess(
    data_dir: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Runs a job to its end; returns the exit code and what it printed."""
    process = subprocess.run(
        command(str(data_dir), str(output_dir), *flags),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return process.returncode, process.stdout


def preprocess_and_break(
    data_dir: pathlib.Path, output_dir: pathlib.Path, break_it: Callable[[], None], *flags: str
) -> tuple[int, str]:
    """Runs a job, calls `break_it` when its first shard is finished, and waits for the job's end.

    Returns:
        The exit code and what was printed.
    """
    log = output_dir.with_suffix(".log")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command(str(data_dir), str(output_dir), *flags),
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + SECONDS
            while not list(output_dir.glob("_shards/stanford_cars-*.json")):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            break_it()
            code = process.wait(SECONDS)
        finally:
            process.kill()
    return code, log.read_text()


def read_folder(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def shards(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns the TFRecord files among the files of an output folder."""
    return {name: data for name, data in files.items() if name.startswith("stanford_cars-")}
