"""A run of two processes with four devices each, over loopback: the real command, twice.

One run is stopped by SIGTERM, continued, loses a process to SIGKILL, and is continued to its end.
Each of its steps must be the step that one device takes from the same checkpoint with the batch
that one host reads.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest
from etils import epath
from rich.console import Console

from tests.trainer import shards
from tests.trainer.conftest import train_here
from trainer import cluster, data, evaluate, metadata, step
from trainer.checkpoints import Checkpoints
from trainer.cluster import Cluster
from trainer.devices import Devices
from trainer.errors import UsageError

ROOT = Path(__file__).parents[2]
STEPS = 9  # 3 an epoch
# What gloo says when it connects; its threads print at once, so pieces of lines come in any order.
GLOO = (
    r"\[Gloo\] Rank |\d+| is connected to | peer ranks\. |"
    r"Expected number of connected peer ranks is : |\s"
)
# The last of a flag counts, so these can follow conftest.TRAIN_FLAGS.
FLAGS = (
    *("--model=small", "--width=6", "--train_crop=16", "--batch_size=16", "--ema=0.9"),
    *("--epochs=3", "--evaluate_every=2"),
    *("--checkpoint_every=1", "--keep_checkpoints=99", "--log_every=1"),
)
HEARTBEAT = 10  # seconds
HUNG = (124, 137, -signal.SIGKILL)  # of `timeout -k`


TRAINER = ("-m", "trainer")


@dataclasses.dataclass
class Ended:
    """How a process ended: its exit code, and what it printed."""

    code: int
    output: str


class Pair:
    """Two processes of one command. `timeout -k` ends them if they hang: SIGTERM may not."""

    def __init__(self, folder: Path, *command: str, python: tuple[str, ...] = TRAINER) -> None:
        """Starts them; they print into files in `folder`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._logs = [folder / f"process{number}.log" for number in range(2)]
        self._processes = [self._start(number, port, (*python, *command)) for number in range(2)]

    def _start(self, number: int, port: int, command: tuple[str, ...]) -> subprocess.Popen:
        with self._logs[number].open("w") as log:
            return subprocess.Popen(
                [
                    # What process 1 writes can be told by its mode.
                    *("sh", "-c", f'umask {("022", "077")[number]}; exec "$@"', "sh"),
                    *("timeout", "-k", "5", "200", sys.executable, *command),
                    *(f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"),
                    *(f"--process_id={number}", f"--heartbeat_timeout_seconds={HEARTBEAT}"),
                ],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=4"),
                },
            )

    def wait_for(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not happened():
            assert time.monotonic() < deadline, self._outputs()
            assert all(p.poll() is None for p in self._processes), self._outputs()
            time.sleep(0.02)

    def signal(self, number: int, what: signal.Signals) -> None:
        (child,) = psutil.Process(self._processes[number].pid).children()
        child.send_signal(what)

    def end(self) -> list[Ended]:
        codes = [process.wait() for process in self._processes]
        return [Ended(*pair) for pair in zip(codes, self._outputs(), strict=True)]

    def _outputs(self) -> list[str]:
        return [log.read_text() for log in self._logs]


def steps_saved(model_dir: Path) -> list[int]:
    folder = model_dir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def losses(model_dir: Path) -> dict[int, float]:
    """Returns what was reported after each step."""
    rows = json.loads((model_dir / "history.json").read_text())["train"]
    return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    counts = {"train": 53, "validation": 21}  # 4 and 3 batches of 16, none of them whole
    shards.write(folder, counts, image_size=16, colors=8, num_classes=6)
    return folder


@dataclasses.dataclass
class Run:
    """A run that was stopped, lost a process, and ended."""

    folder: Path
    stopped: list[Ended]
    stopped_at: list[int]
    lost: list[Ended]
    done: list[Ended]


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory) -> Run:
    logs, folder = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("model")
    command = ("train", f"--data_dir={data_dir}", f"--model_dir={folder}", *FLAGS)

    pair = Pair(logs, *command)
    pair.wait_for(lambda: 2 in steps_saved(folder))
    pair.signal(1, signal.SIGTERM)
    stopped = pair.end()
    stopped_at = steps_saved(folder)

    pair = Pair(logs, *command)
    pair.wait_for(lambda: len(steps_saved(folder)) > len(stopped_at) + 1)
    pair.signal(1, signal.SIGKILL)
    lost = pair.end()

    return Run(folder, stopped, stopped_at, lost, Pair(logs, *command).end())


def test_sigterm_to_one_process_stops_both_after_the_same_step(run):
    last = run.stopped_at[-1]
    assert 2 <= last < STEPS
    for process in run.stopped:
        assert process.code == 75, process.output
        assert f"saved step {last} of {STEPS}" in process.output


def test_a_lost_process_ends_the_other_with_an_error(run):
    survivor, killed = run.lost
    assert killed.code == -signal.SIGKILL
    assert survivor.code not in (0, 75, *HUNG), survivor.output
    assert re.search("process 0 of 2 stops|heartbeat", survivor.output)


def test_the_same_command_continues_and_only_process_0_prints_and_writes(run):
    first, second = run.done
    assert (first.code, second.code) == (0, 0), first.output + second.output
    at = int(re.findall(r"continues after step (\d+)", first.output)[0])
    assert steps_saved(run.folder) == list(range(1, STEPS + 1))
    for process in (run.stopped[1], run.done[1]):
        printed = re.sub(
            r"(?m)^(W.* SIGTERM caught|stopped as asked|waiting  for).*\n", "", process.output
        )
        assert not re.sub(GLOO, "", printed)
    # The first step of each start compiles and makes no report.
    assert set(losses(run.folder)) == {*range(1, STEPS + 1)} - {1, run.stopped_at[-1] + 1, at + 1}
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    by_second = [path.relative_to(run.folder) for path in written if not path.stat().st_mode & 0o44]
    assert {path.parts[0] for path in by_second} <= {"checkpoints", "best"}
    assert {path.name for path in run.folder.iterdir()} == {
        *("best", "checkpoints", "config.json", "curves.png", "events", "history.json"),
        "preprocessing.json",
    }


@pytest.fixture(scope="module")
def program_and_states(run) -> tuple[step.Program, list[dict]]:
    """The model, and the state before each step and after the last, as NumPy arrays."""
    one = Devices.of(jax.devices()[:1])
    with Checkpoints(epath.Path(run.folder / "checkpoints")) as saved:
        record = saved.read_run(1)
        program = step.build(
            record.config,
            classes=len(record.class_names),
            image_size=record.image_size,
            total_steps=record.total_steps,
            platform="cpu",
        )
        first = step.init_state(program)
        like = one.replicate(first)
        rest = [jax.device_get(saved.restore(at, like)) for at in range(1, STEPS + 1)]
        return program, [first, *rest]


@pytest.mark.parametrize("count", [1, 8])
def test_each_step_is_that_of_one_process(run, data_dir, program_and_states, count):
    """With the batch that one host reads, at every state of the run: over each start and end."""
    devices = Devices.of(jax.devices()[:count])
    reported = losses(run.folder)
    program, states = program_and_states
    train_step = step.make_train_step(program, devices)
    batches = data.train_batches(
        metadata.read(data_dir), "train", global_batch=16, seed=0, data_streams=8
    )
    for done, (before, after, batch) in enumerate(
        zip(states, states[1:], batches, strict=False), 1
    ):
        state, result = train_step(devices.replicate(before), devices.put_batch(batch))
        loss = float(result["loss"])
        assert reported.get(done, loss) == pytest.approx(loss, rel=1e-5)
        for part in ("weights", "statistics", "optimizer"):
            for name, value in after[part].items():
                scale = np.abs(value - before[part][name]).max() + 1e-30
                error = np.abs(np.asarray(state[part][name]) - value).max() / scale
                floor = 4 * np.spacing(np.abs(value).max()) / scale
                assert error < 1e-5 + floor, (done, part, name, error)


def test_evaluation_and_the_best_are_those_of_one_process(run, data_dir):
    rows = json.loads((run.folder / "history.json").read_text())["evaluation"]
    assert [row["step"] for row in rows] == [6, STEPS]
    best = max(rows, key=lambda row: row["top1"])
    assert [p.name for p in (run.folder / "best").iterdir()] == [str(best["step"])]
    found = evaluate.evaluate(
        str(data_dir), epath.Path(run.folder), "validation", 16, Console(quiet=True)
    )
    assert (found.pictures, found.top1) == (21, best["top1"])
    assert found.loss == pytest.approx(best["loss"], rel=1e-5)


def test_another_number_of_processes_continues_a_run(run, data_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run.folder, folder)
    for at in (STEPS - 1, STEPS):
        shutil.rmtree(folder / f"checkpoints/{at}")
    assert train_here(data_dir, folder, *FLAGS) == 0
    assert losses(folder)[STEPS] == pytest.approx(losses(run.folder)[STEPS], rel=1e-4)


def test_two_processes_evaluate_as_one(run, data_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run.folder, folder)
    arguments = ("evaluate", f"--data_dir={data_dir}", f"--model_dir={folder}")
    first, second = Pair(tmp_path, *arguments, "--split=validation", "--batch_size=5").end()
    assert (first.code, second.code) == (0, 0), first.output + second.output
    assert "top-1" in first.output
    assert "top-1" not in second.output
    one = evaluate.evaluate(
        str(data_dir), epath.Path(run.folder), "validation", 16, Console(quiet=True)
    )
    two = json.loads((folder / "evaluation/validation/metrics.json").read_text())
    assert (two["pictures"], two["top1"]) == (21, one.top1)
    assert two["loss"] == pytest.approx(one.loss, rel=1e-5)


def test_a_shard_that_one_process_cannot_read_ends_both(data_dir, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    path = folder / "stanford_cars-train.tfrecord-00002-of-00003"  # in the part of process 1
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    model_dir = tmp_path / "model"
    command = ("train", f"--data_dir={folder}", f"--model_dir={model_dir}", *FLAGS)
    first, second = Pair(tmp_path, *command).end()
    assert second.code == 2
    assert f"error: {path}" in second.output
    assert first.code not in (0, 75, *HUNG), first.output


CHECKS = """
import argparse, os, sys
from etils import epath
from trainer import cluster
from trainer.errors import UsageError

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=epath.Path)
cluster.add_flags(parser)
flags = parser.parse_args()
first = cluster.join(cluster.from_flags(flags, os.environ))
cluster.check_agreement({"recipe": "a", "data": "b"})
cluster.check_shared(flags.folder / "shared")
assert (flags.folder / "shared").is_dir()
for check in (
    lambda: cluster.check_agreement({"recipe": "a", "data": str(first)}),
    lambda: cluster.check_shared(flags.folder / str(first)),
):
    try:
        check()
    except UsageError as error:
        print(error)
cluster.leave(75)
"""


STUCK = """
import argparse, os, time
from trainer import cluster

parser = argparse.ArgumentParser()
cluster.add_flags(parser)
if cluster.join(cluster.from_flags(parser.parse_args(), os.environ)):
    time.sleep(1000)  # as in a collective of a TPU, whose other end is gone
cluster.leave(2)
"""


def test_a_process_that_fails_ends_one_that_waits_for_it(tmp_path):
    waiting, failed = Pair(tmp_path, python=("-c", STUCK)).end()
    assert failed.code == 2, failed.output
    assert waiting.code not in (0, 75, *HUNG), waiting.output
    assert "heartbeat" in waiting.output


def test_processes_that_do_not_mean_the_same_run_are_told_so(tmp_path):
    for ended in Pair(tmp_path, str(tmp_path), python=("-c", CHECKS)).end():
        assert ended.code == 75, ended.output
        assert "process 1 has another data than process 0" in ended.output
        assert "process 1 does not see what process 0 writes" in ended.output
    assert list((tmp_path / "shared").iterdir()) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_processes": 2}, "need --coordinator_address too"),
        ({"coordinator_address": "a:1", "num_processes": 2}, "need --process_id too"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "numbered from 0"),
        ({"coordinator_address": "a", "num_processes": 2, "process_id": 0}, "names no port"),
        ({"heartbeat_timeout_seconds": 0}, "--heartbeat_timeout_seconds is 0"),
    ],
)
def test_what_does_not_go_together_is_an_error(values, said):
    with pytest.raises(UsageError, match=said):
        Cluster(**values)


def test_the_environment_holds_where_no_flag_is_given():
    environment = {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.2:8476",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
    }
    parser = argparse.ArgumentParser()
    cluster.add_flags(parser)
    found = cluster.from_flags(parser.parse_args(["--process_id=0"]), environment)
    assert found == Cluster("10.0.0.2:8476", 4, 0)
    with pytest.raises(UsageError, match="JAX_NUM_PROCESSES=four is not a number"):
        cluster.from_flags(parser.parse_args([]), {**environment, "JAX_NUM_PROCESSES": "four"})


def test_who_waits_in_vain_is_told_for_whom(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        done = subprocess.run(
            [
                *("timeout", "-k", "5", "100", sys.executable, "-m", "trainer", "evaluate"),
                *("--data_dir=/nowhere", "--model_dir=/nowhere", "--num_processes=2"),
                *(f"--coordinator_address={address}", "--process_id=1"),
                "--initialization_timeout_seconds=1",
            ],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode not in (0, 75, *HUNG)
    assert f"waiting  for 2 processes at {address}, at most 1 s" in done.stderr


def test_one_process_joins_nothing():
    assert cluster.join(Cluster())
    assert cluster.join(Cluster(num_processes=1))
    assert not jax.distributed.is_initialized()
