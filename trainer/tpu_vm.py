"""Training on Cloud TPU: on this TPU VM, or through gcloud on all workers of a slice.

What `make train-tpu` calls, as a script: TPU VMs come with Python 3.10, so this file needs the
standard library of Python 3.8 only and brings the Python that the trainer needs. The same file is
at work on both ends:

    here     on a TPU VM: installs `.[tpu]` with the pinned versions, then is `trainer train`
    launch   on any machine with gcloud: copies the source and this file to all workers and starts
    worker   …which unpacks, starts `here` detached from the connection, and follows its log

A connection that drops ends nothing but the following. The same command follows again while a run
is going on, and otherwise starts it, which continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import fcntl
import glob
import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import IO

SOURCE = ("constraints.txt", "pipeline", "pyproject.toml", "setup.py", "trainer")
PYTHON = "3.11"  # constraints.txt was resolved for it
FOLDER = "stanford-cars-tpu"  # in the home folder of a worker

_POLL_SECONDS = 0.5


class TpuError(Exception):
    """A mistake that a person can mend, told in a line or two."""


def here_is_a_tpu() -> bool:
    """Whether this machine has a TPU, as `trainer.accelerators` finds out, which needs the venv."""
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


class Shell:
    """Runs commands, or prints them where a dry run was asked for."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run

    def run(self, *command: str) -> int:
        """Shows a command, runs it, and returns its exit code; 0 in a dry run."""
        print(shlex.join(command), flush=True)
        return 0 if self.dry_run else subprocess.run(command, check=False).returncode

    def must(self, *command: str) -> None:
        """Runs a command that nothing can go on without.

        Raises:
            TpuError: if it fails.
        """
        code = self.run(*command)
        if code:
            raise TpuError(f"exit code {code} of: {shlex.join(command)}")


def install(source: pathlib.Path, venv: pathlib.Path, shell: Shell) -> None:
    """Makes an environment with `.[tpu]`, every version pinned; a second call finds it made.

    uv comes by pip, so that nothing but pip is needed, and brings Python where it is too old.
    """
    pins = b"".join((source / name).read_bytes() for name in ("setup.py", "constraints.txt"))
    stamp, digest = venv / "installed-tpu", hashlib.sha256(pins).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    tools, pinned = venv.with_name(venv.name + "-uv"), str(source / "constraints.txt")
    uv, python = str(tools / "bin" / "uv"), str(venv / "bin" / "python")
    shell.must(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"),
        *("--target", str(tools), "--constraint", pinned, "uv"),
    )
    if not (venv / "bin" / "python").exists():
        shell.must(uv, "venv", "--quiet", "--python", PYTHON, str(venv))
    shell.must(
        *(uv, "pip", "install", "--quiet", "--python", python),
        *("--constraint", pinned, "--editable", f"{source}[tpu]"),
    )
    if not shell.dry_run:
        stamp.write_text(digest)


def here(source: pathlib.Path, venv: pathlib.Path, arguments: list[str], shell: Shell) -> None:
    """Installs, and becomes `python -m trainer train`; returns from a dry run only.

    Args:
        source: folder of `setup.py`.
        venv: folder of the environment.
        arguments: of `train`.
        shell: runs or prints.

    Raises:
        TpuError: if the installation fails.
    """
    install(source, venv, shell)
    # A TPU that cannot be used is then an error, not a run on the CPU; and Orbax needs the CPU.
    os.environ.setdefault("JAX_PLATFORMS", "tpu,cpu")
    command = [str(venv / "bin" / "python"), "-m", "trainer", "train", *arguments]
    if shell.dry_run:
        shell.run("env", f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}", *command)
        return
    os.chdir(source)
    os.execv(command[0], command)


def worker(home: pathlib.Path, arguments: list[str]) -> int:
    """Starts a run that survives this process, or finds one that goes on, and follows its log.

    Args:
        home: where `launch` put the source, and where everything of the run goes.
        arguments: of `train`.

    Returns:
        The exit code of the run.
    """
    folder = home / FOLDER
    folder.mkdir(exist_ok=True)
    log, exit_code = folder / "train.log", folder / "exit_code"
    with (folder / "running").open("w") as lock:
        if _held(lock):
            print(f"a run goes on here; following {log}", flush=True)
        else:
            # The run inherits the lock: the system gives it up when the last of its processes ends.
            start = _unpack(home, folder)
            exit_code.unlink(missing_ok=True)
            command = f"{shlex.join([*start, *arguments])}; echo $? > {shlex.quote(str(exit_code))}"
            with log.open("w") as output:
                subprocess.Popen(
                    ["sh", "-c", command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that no hangup reaches it
                    pass_fds=[lock.fileno()],
                )
    return _follow(folder, log, exit_code)


def _held(lock: IO[str]) -> bool:
    """Takes a lock; returns True if another process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _unpack(home: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Replaces the source and returns the command that starts it."""
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(home / f"{FOLDER}.tar.gz") as archive:
        archive.extractall(source)
    script, venv = source / "trainer" / "tpu_vm.py", folder / "venv"
    return [sys.executable, "-I", str(script), "here", f"--venv={venv}", "--"]


def _follow(folder: pathlib.Path, log: pathlib.Path, exit_code: pathlib.Path) -> int:
    """Prints a log while it grows; returns the exit code of the run when that has ended."""
    with log.open(errors="replace") as lines, (folder / "running").open("w") as lock:
        ended = False
        while not ended:
            ended = not _held(lock)  # asked before reading, so nothing that was written is missed
            shutil.copyfileobj(lines, sys.stdout)
            sys.stdout.flush()
            time.sleep(0 if ended else _POLL_SECONDS)
    code = int(exit_code.read_text()) if exit_code.exists() else 1
    name = os.uname().nodename
    if not exit_code.exists():
        print(f"{name}: killed, without an exit code; the same command continues")
    else:
        print(f"{name}: exit code {code}" + ("; the same command continues" if code == 75 else ""))
    return code


def launch(
    slice_flags: dict[str, str | None], root: pathlib.Path, arguments: list[str], shell: Shell
) -> int:
    """Copies the source to all workers of a slice, and runs `worker` on them.

    Args:
        slice_flags: TPU_NAME, ZONE and PROJECT.
        root: folder of `setup.py`.
        arguments: of `train`.
        shell: runs or prints.

    Returns:
        The exit code of gcloud, which is one of a worker that failed.

    Raises:
        TpuError: if something is missing, or copying fails.
    """
    missing = [name for name, value in slice_flags.items() if not value]
    if missing:
        raise TpuError(f"give {' and '.join(missing)} too: TPU_NAME, ZONE and PROJECT name a slice")
    for argument in arguments:
        name, _, path = argument.partition("=")
        if name in ("--data_dir", "--model_dir") and "://" not in path and path[:1] != "/":
            raise TpuError(
                f"{name}={path} is a path of this machine; the workers need one that all of them "
                "see, such as gs://bucket/folder"
            )
    if not shell.dry_run and shutil.which("gcloud") is None:
        raise TpuError("gcloud is not installed; see https://cloud.google.com/sdk/docs/install")
    tpu, zone, project = (str(slice_flags[name]) for name in ("TPU_NAME", "ZONE", "PROJECT"))
    gcloud = ("gcloud", "compute", "tpus", "tpu-vm")
    where = ("--worker=all", f"--zone={zone}", f"--project={project}")
    with tempfile.TemporaryDirectory() as scratch:
        archive = pathlib.Path(scratch) / f"{FOLDER}.tar.gz"
        pack(root, archive)
        script = root / "trainer" / "tpu_vm.py"
        shell.must(*gcloud, "scp", str(archive), str(script), f"{tpu}:", *where)
    command = shlex.join(["python3", "-I", script.name, "worker", "--", *arguments])
    return shell.run(*gcloud, "ssh", tpu, *where, f"--command={command}")


def pack(root: pathlib.Path, archive: pathlib.Path) -> None:
    """Writes what the trainer needs of a source folder into an archive."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "__pycache__" in entry.name else entry

    with tarfile.open(archive, "w:gz") as tar:
        for name in SOURCE:
            tar.add(root / name, arcname=name, filter=wanted)


def main(arguments: list[str]) -> int:
    """Runs the command line; the arguments after `--` are those of `python -m trainer train`."""
    parser = argparse.ArgumentParser(prog="make train-tpu", description=__doc__)
    parser.add_argument("command", choices=("auto", "here", "worker"))
    parser.add_argument("--venv", type=pathlib.Path, default=pathlib.Path(".venv"))
    split = arguments.index("--") if "--" in arguments else len(arguments)
    flags, rest = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    shell = Shell(dry_run=os.environ.get("DRY_RUN", "0") not in ("", "0"))
    root = pathlib.Path(__file__).resolve().parents[1]
    slice_flags = {name: os.environ.get(name) for name in ("TPU_NAME", "ZONE", "PROJECT")}
    try:
        if flags.command == "worker":
            return worker(pathlib.Path.home(), rest)
        if flags.command == "auto" and any(slice_flags.values()):
            return launch(slice_flags, root, rest, shell)
        if flags.command == "auto" and not here_is_a_tpu():
            raise TpuError(
                "no TPU here, and no TPU_NAME, ZONE and PROJECT to reach one; `make train` trains "
                "on this machine, `make check-tpu` compiles for a TPU without having one"
            )
        here(root, flags.venv.absolute(), rest, shell)
        return 0
    except TpuError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("no longer followed; the run goes on, and the same command follows it again")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
