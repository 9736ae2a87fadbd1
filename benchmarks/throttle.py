"""Reads from a disk made slow by the kernel: the limit on a control group's reads.

Linux and root. The files are first dropped from the page cache, so every byte comes from the disk,
at most at the rate that is asked for.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_VERSION_1 = Path("/sys/fs/cgroup/blkio")
_VERSION_2 = Path("/sys/fs/cgroup")
_TRIES = 50


def drop(paths: Iterable[Path]) -> None:
    """Writes files to the disk and forgets what the page cache holds of them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def limited_reads(path: Path, rate: float) -> Iterator[None]:
    """Limits what this process, and those it starts meanwhile, read from a disk.

    Args:
        path: a file or folder on the disk.
        rate: in bytes a second.

    Raises:
        OSError: where control groups do not limit reads, or this user may not.
    """
    device = os.stat(path).st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    name = f"stanford-cars-bench-{os.getpid()}"
    if _VERSION_1.is_dir():
        root, group = _VERSION_1, _VERSION_1 / name
        limit, text = "blkio.throttle.read_bps_device", f"{numbers} {rate:.0f}"
    else:
        root, group = _VERSION_2, _VERSION_2 / name
        limit, text = "io.max", f"{numbers} rbps={rate:.0f}"
        (root / "cgroup.subtree_control").write_text("+io")
    group.mkdir()
    try:
        (group / limit).write_text(text)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(_TRIES):  # killed processes may not have left yet
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)
