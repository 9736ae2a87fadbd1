"""Times several loaders fairly on a busy machine: each in a process of its own, in short rounds.

The loaders take turns, one round each, again and again, so that what disturbs one disturbs all. A
ratio is the median over the rounds of the ratio in each round. CPU time is that of the whole
process, with all that its threads did since its last round, such as filling their buffers.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np

_ROUND_SECONDS = 0.25
# Also to begin with. Fewer, and what a loader reads ahead between rounds counts for too much: one
# batch a round made the slowest loader seem three times slower than it is.
_LEAST_BATCHES = 8


@dataclasses.dataclass
class Timing:
    """Seconds per picture of a loader, one entry a round."""

    cpu: list[float] = dataclasses.field(default_factory=list)
    wall: list[float] = dataclasses.field(default_factory=list)


class Worker:
    """A loader in another process, which answers `serve`. A context manager."""

    def __init__(self, command: Sequence[str]) -> None:
        """Starts it.

        Args:
            command: arguments for this Python, of a process that calls `serve`.
        """
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._batches = _LEAST_BATCHES

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # With the processes that a loader started of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ask(self, question: str) -> str:
        """Writes a line to the process and returns the line that it answers.

        Raises:
            RuntimeError: if the process has died.
        """
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r}: died; see above")
        return line

    def round(self) -> tuple[float, float]:
        """Reads some batches; returns seconds of CPU and of wall time a picture.

        Raises:
            RuntimeError: if the process has died.
        """
        cpu, wall, pictures = json.loads(self.ask(str(self._batches)))
        # As many next time as fill a round.
        self._batches = max(_LEAST_BATCHES, round(self._batches * _ROUND_SECONDS / wall))
        return cpu / pictures, wall / pictures


def serve(batches: Iterator[Any], rows: int) -> None:
    """Answers each number of batches on standard input with the time that reading them took.

    Args:
        batches: without end.
        rows: of a batch.
    """
    next(batches)
    done = time.process_time()
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        wall = time.perf_counter() - start
        before, done = done, time.process_time()
        print(json.dumps([done - before, wall, count * rows]), flush=True)


def take_turns(
    workers: dict[str, Worker], rounds: int, progress: Callable[[range], Any] = iter
) -> dict[str, Timing]:
    """Returns the timing of each worker over a number of rounds, after two to warm up."""
    timings = {name: Timing() for name in workers}
    for number in progress(range(rounds + 2)):
        for name, worker in workers.items():
            cpu, wall = worker.round()
            if number >= 2:
                timings[name].cpu.append(cpu)
                timings[name].wall.append(wall)
    return timings


def ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """Returns how many times the rate of `other` that of `mine` is, from seconds a picture."""
    return float(np.median(np.array(other) / np.array(mine)))
