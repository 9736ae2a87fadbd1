"""Programs that a test starts beside itself: each in its own process group, none outlives the test.

A group is killed when its block ends, and by coreutils' `timeout` when the test itself was killed.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import psutil

LIFETIME_SECONDS = 600  # no program of these tests may live longer, whatever happened to its test
START_SECONDS = 90  # a JVM on a busy machine of two cores took 17


class EngineStartError(RuntimeError):
    """A program of the harness ended, or was not ready in time."""


class Program:
    """A started program and its process group."""

    def __init__(self, name: str, process: subprocess.Popen, log: pathlib.Path) -> None:
        self.name, self._process, self._log = name, process, log

    def kill(self) -> None:
        """Ends the whole group at once, as a machine that loses power does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def kill_children(self) -> int:
        """Ends what the program itself has started, but not the program; returns how many."""
        [program] = psutil.Process(self._process.pid).children()  # the child of `timeout`
        children = program.children(recursive=True)
        for child in children:
            child.kill()
        return len(children)

    def tail(self, characters: int = 2000) -> str:
        """Returns the end of what the program has printed."""
        return self._log.read_text(errors="replace")[-characters:]

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Waits until `ready` returns True.

        Raises:
            EngineStartError: if the program ends first, or after `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._process.poll() is not None:
                raise EngineStartError(f"{self.name} ended before {what}: {self.tail()}")
            if time.monotonic() > deadline:
                raise EngineStartError(f"{self.name}: not {what} in time: {self.tail()}")
            time.sleep(0.2)


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    folder: pathlib.Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """Runs a program in a process group of its own until the block ends.

    Args:
        name: for messages; the program's output goes to `folder/name.log`.
        command: the program and its arguments.
        folder: its working folder.
        environment: added to this process's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["timeout", "--kill-after=5", str(LIFETIME_SECONDS), *command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    program = Program(name, process, log)
    try:
        yield program
    finally:
        program.kill()


def free_port() -> int:
    """Returns a TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Returns whether something accepts connections on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def run_worker_pool(folder: pathlib.Path) -> Iterator[tuple[Program, list[str]]]:
    """Runs Beam's pool of SDK workers, each a process of its own, outside the engine.

    Yields:
        The pool, and the Beam options that make an engine take its workers from there.
    """
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "apache_beam.runners.worker.worker_pool_main",
        f"--service_port={port}",
    ]
    # The pool starts its workers as plain `python`, whichever comes first in PATH.
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with running("worker-pool", command, folder, {"PATH": path}) as pool:
        pool.wait_until(lambda: listens(port), "listening")
        yield pool, ["--environment_type=EXTERNAL", f"--environment_config=localhost:{port}"]
