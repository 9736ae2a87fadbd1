"""How far a shard under work is: a small file that its worker keeps up to date for `progress`.

Only where the output is a local folder. On an object store each update would be a request, so
there progress moves by whole shards.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping

from pipeline import storage
from pipeline.shards import SIDECAR_FOLDER, Shard

SECONDS = 0.5  # between two updates
# What a killed worker leaves is removed with its other half-written files.
PREFIX = f"{storage.TEMPORARY_PREFIX}tally-"


@contextlib.contextmanager
def tally(output_dir: str, shard: Shard) -> Iterator[Callable[[bool], None]]:
    """Counts the pictures of a shard for as long as the block runs.

    Yields:
        A function to call for each picture, with whether it was rejected.
    """
    if not storage.is_local(output_dir):
        yield lambda _: None
        return
    done = rejects = 0
    told = time.monotonic()
    path = storage.join(output_dir, SIDECAR_FOLDER, PREFIX + shard.file_name)

    def count(rejected: bool) -> None:
        nonlocal done, rejects, told
        done += 1
        rejects += rejected
        if time.monotonic() >= told + SECONDS:
            told = time.monotonic()
            # A disk that is full fails the shard soon enough; progress is not worth an error.
            with contextlib.suppress(OSError), open(path, "w") as file:
                file.write(f"{done} {rejects}\n")

    try:
        yield count
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)


def read(output_dir: str, files: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """Returns pictures done and rejected, by file name of each shard under work.

    Args:
        output_dir: folder of the shards.
        files: what lies in its folder of sidecars, by name.
    """
    found = {}
    for name in files:
        if name.startswith(PREFIX):
            # It may end, or be half-written, at this moment.
            with contextlib.suppress(OSError, ValueError):
                text = storage.read_text(storage.join(output_dir, SIDECAR_FOLDER, name))
                done, rejects = text.split()
                found[name.removeprefix(PREFIX)] = int(done), int(rejects)
    return found
