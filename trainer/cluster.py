"""The processes of a run: how they find each other, and how they end together.

One process drives the devices of one host. On a TPU slice the machine knows the others; elsewhere
three flags or environment variables say who they are, and gloo carries what CPUs exchange. JAX's
coordination service, which process 0 holds, watches them: a process that dies ends the others when
its heartbeats have been missing for a while, and SIGTERM to one stops all after the same step.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

from etils import epath

from trainer import accelerators
from trainer.errors import EXIT_CRASHED, EXIT_PREEMPTED, UsageError

_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_HEARTBEAT_SECONDS = 100  # JAX's own
_CONNECT_SECONDS = 300  # likewise
_LEAVE_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Who takes part in a run.

    Attributes:
        coordinator_address: `host:port` of process 0; None where the machine knows, or there is
            one process.
        num_processes: how many; None where the machine knows.
        process_id: number of this one, from 0; None where the machine knows.
        heartbeat_timeout_seconds: a process silent for so long is taken for lost.
        initialization_timeout_seconds: how long to wait for the others at the start.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_timeout_seconds: int = _HEARTBEAT_SECONDS
    initialization_timeout_seconds: int = _CONNECT_SECONDS

    def __post_init__(self) -> None:
        for name in ("heartbeat_timeout_seconds", "initialization_timeout_seconds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must be 1 or more")
        if self.num_processes == 1:
            return
        given = {name: getattr(self, name) for name in _VARIABLES}
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given):
            return
        if missing:
            raise UsageError(
                f"several processes need --{missing[0]} too (or {_VARIABLES[missing[0]]}); "
                f"give all of {', '.join('--' + name for name in given)}, or none"
            )
        assert self.num_processes is not None
        assert self.process_id is not None
        if not 0 <= self.process_id < self.num_processes:
            raise UsageError(
                f"--process_id={self.process_id} of --num_processes={self.num_processes}; "
                "processes are numbered from 0"
            )
        if ":" not in str(self.coordinator_address):
            raise UsageError(
                f"--coordinator_address={self.coordinator_address} names no port; "
                "give that of process 0, such as 10.0.0.2:8476"
            )


def add_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of a `Cluster`."""
    group = command.add_argument_group(
        "cluster",
        "The processes of a run on several hosts: the same command on each, --process_id apart. "
        "Nothing is needed on a TPU slice; --num_processes=1 keeps a TPU VM to itself.",
    )
    group.add_argument(
        "--coordinator_address",
        metavar="HOST:PORT",
        help="where process 0 listens (default: $JAX_COORDINATOR_ADDRESS)",
    )
    group.add_argument(
        "--num_processes", type=int, metavar="INT", help="how many (default: $JAX_NUM_PROCESSES)"
    )
    group.add_argument(
        "--process_id", type=int, metavar="INT", help="of this one (default: $JAX_PROCESS_ID)"
    )
    group.add_argument(
        "--heartbeat_timeout_seconds",
        type=int,
        default=_HEARTBEAT_SECONDS,
        metavar="INT",
        help=f"a process silent so long ends the others (default: {_HEARTBEAT_SECONDS})",
    )
    group.add_argument(
        "--initialization_timeout_seconds",
        type=int,
        default=_CONNECT_SECONDS,
        metavar="INT",
        help=f"how long to wait for the others at the start (default: {_CONNECT_SECONDS})",
    )


def from_flags(flags: argparse.Namespace, environment: Mapping[str, str]) -> Cluster:
    """Returns what flags or else the environment say.

    Raises:
        UsageError: if it does not go together.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Cluster):
        values[field.name] = getattr(flags, field.name)
        variable = _VARIABLES.get(field.name)
        if values[field.name] is None and variable and environment.get(variable):
            text = environment[variable]
            try:
                values[field.name] = text if field.name == "coordinator_address" else int(text)
            except ValueError as error:
                raise UsageError(f"{variable}={text} is not a number") from error
    return Cluster(**values)


def join(cluster: Cluster) -> bool:
    """Connects this process to the others, before JAX is used for anything else.

    Does nothing for one process on a machine without TPU. A single TPU host joins a cluster of
    itself: only the slice knows how many hosts it has.

    Returns:
        Whether this is the process that prints and writes.

    Raises:
        UsageError: if it cannot be known who the others are. When they do not come in time, JAX
            ends the process with a message of its own.
    """
    on_slice = cluster.num_processes is None and accelerators.tpu_wanted()
    if not on_slice and cluster.num_processes in (None, 1):
        return True
    import jax

    whom = "the workers of this TPU slice"
    if not on_slice:
        whom = f"{cluster.num_processes} processes at {cluster.coordinator_address}"
    seconds = cluster.initialization_timeout_seconds
    print(f"waiting  for {whom}, at most {seconds} s", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            cluster.coordinator_address,
            cluster.num_processes,
            cluster.process_id,
            # Without an automatic look for Slurm, MPI and Kubernetes, which may be there and not
            # be meant.
            cluster_detection_method=None if on_slice else "deactivate",
            heartbeat_timeout_seconds=cluster.heartbeat_timeout_seconds,
            initialization_timeout=cluster.initialization_timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"{whom} cannot be joined ({_first_line(error)}); "
            "--num_processes=1 keeps to this host alone"
        ) from error
    sys.excepthook = _tell_and_leave
    return jax.process_index() == 0


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _tell_and_leave(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Reports an exception that nothing caught; a collective whose other end is gone raises one."""
    import jax

    sys.__excepthook__(kind, error, trace)
    if isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} stops. If another one "
            "ended before it, what that one printed is the reason; the same command continues "
            "from the last checkpoint",
            file=sys.stderr,
        )
    leave(EXIT_CRASHED)


def leave(code: int) -> NoReturn:
    """Ends this process of a run, so that the others do not wait for one that is no more.

    JAX's own way out waits up to five minutes for all processes to be done. That is right for a
    process that is done (codes 0 and 75), whose coordination service the others may still need.
    """
    if "jax" not in sys.modules:
        sys.exit(code)
    from jax._src import distributed  # as Orbax does: there is no public way to the client

    client = distributed.global_state.client
    if client is None or code in (0, EXIT_PREEMPTED):
        sys.exit(code)
    # A mistake that all make is told by all before process 0 takes the service away.
    with contextlib.suppress(RuntimeError):
        client.wait_at_barrier("leave", timeout_in_ms=_LEAVE_SECONDS * 1000)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def check_agreement(what: Mapping[str, str]) -> None:
    """Makes sure that all processes mean the same run, before any of them waits for another.

    Args:
        what: name to value, such as of the recipe; in the same order everywhere.

    Raises:
        UsageError: on every process, if any value differs between processes.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(value.encode()).digest() for value in what.values()]
    mine = np.frombuffer(b"".join(digests), np.uint8).reshape(len(what), -1)
    everyone = multihost_utils.process_allgather(mine)  # (processes, values, bytes)
    for name, column in zip(what, everyone.swapaxes(0, 1), strict=True):
        differing = [number for number, row in enumerate(column) if (row != column[0]).any()]
        if differing:
            raise UsageError(
                f"process {differing[0]} has another {name} than process 0; "
                "start every process with the same command and the same files"
            )


def check_shared(folder: epath.Path) -> None:
    """Makes sure that all processes see one folder: checkpoints are written by all, into one place.

    Args:
        folder: made if it is missing.

    Raises:
        UsageError: on every process, if one of them does not see what process 0 wrote.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.uint32(int.from_bytes(os.urandom(4), "big")))
    probe = folder / f".shared-by-all-hosts-{number}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
    multihost_utils.sync_global_devices("probe written")
    seen = multihost_utils.process_allgather(np.array(probe.exists()))
    if jax.process_index() == 0:
        probe.unlink()
    if not seen.all():
        raise UsageError(
            f"process {int(np.argmin(seen))} does not see what process 0 writes to {folder}; "
            "--model_dir must be one folder for all hosts, such as gs://bucket/model"
        )
