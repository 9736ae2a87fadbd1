"""Whole files on anything that Beam's FileSystems reach: read, list, publish at once, remove.

A file appears under its final name complete or not at all. On a local disk that is a rename within
one folder. On an object store a rename is a copy, so there the content is completed in a local
temporary file first and created under its final name in one write, which such stores make atomic.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import BinaryIO, NamedTuple

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline import gcs

# Hidden, so that no reader's `*.tfrecord*` finds a file that is not whole yet.
TEMPORARY_PREFIX = ".tmp-"


class Entry(NamedTuple):
    """A file as a listing shows it: size in bytes, modification time in seconds (0.0: unknown)."""

    size: int
    modified: float


def is_local(path: str) -> bool:
    """Returns whether `path` lies on this machine's own file system."""
    return FileSystems.get_scheme(path) is None


def join(folder: str, *parts: str) -> str:
    """Returns the path of something in `folder`, in the notation of its file system."""
    return FileSystems.join(folder, *parts)


def read_bytes(path: str) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: if it cannot be read; `FileNotFoundError` if it is not there.
    """
    if _is_gcs(path):
        with _os_errors(path, "read"):
            return gcs.read(path)
    with open_binary(path) as file, _os_errors(path, "read"):
        return bytes(file.read())


def _is_gcs(path: str) -> bool:
    return bool(FileSystems.get_scheme(path) == gcs.SCHEME)


@contextlib.contextmanager
def _os_errors(path: str, done: str) -> Iterator[None]:
    """Raises what an object store raises as `OSError`; gs:// has errors that are none."""
    if is_local(path):
        yield
        return
    try:
        yield
    except gcs.errors() as error:
        if done == "read" and _is_missing(path, error):
            raise FileNotFoundError(f"no such file: {path}") from error
        raise OSError(f"{path} cannot be {done}: {error}") from error


def _is_missing(path: str, error: Exception) -> bool:
    if _is_gcs(path):
        return getattr(error, "code", None) == HTTPStatus.NOT_FOUND
    return not exists(path)  # other stores raise one error for everything


def read_text(path: str) -> str:
    """Returns the content of a UTF-8 file; raises as `read_bytes`."""
    return read_bytes(path).decode()


def read_lines(path: str) -> Iterator[bytes]:
    """Yields the lines of a file, split at newlines alone; raises as `read_bytes`."""
    with open_binary(path) as file, _os_errors(path, "read"):
        yield from file


def open_binary(path: str) -> BinaryIO:
    """Returns a file opened for reading from its start; raises as `read_bytes`."""
    if is_local(path):
        return open(path, "rb")
    with _os_errors(path, "read"):
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def exists(path: str) -> bool:
    """Returns whether there is a file at `path`."""
    return bool(FileSystems.exists(path))


def size(path: str) -> int | None:
    """Returns the size of a file in bytes, or None where there is none."""
    if is_local(path):
        try:
            return os.path.getsize(path)
        except FileNotFoundError:
            return None
    [result] = FileSystems.match([path])
    return int(result.metadata_list[0].size_in_bytes) if result.metadata_list else None


def list_folder(folder: str) -> dict[str, Entry]:
    """Returns the files directly in `folder` by name; empty where there is no such folder."""
    if is_local(folder):
        if not os.path.isdir(folder):
            return {}
        found = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                # Another process may rename its temporary file between the listing and the look.
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file():
                        status = entry.stat()
                        found[entry.name] = Entry(status.st_size, status.st_mtime)
        return found
    prefix = folder.rstrip("/") + "/"
    [result] = FileSystems.match([prefix + "*"])
    return {
        m.path[len(prefix) :]: Entry(m.size_in_bytes, m.last_updated_in_seconds or 0.0)
        for m in result.metadata_list
    }


def make_folder(folder: str) -> None:
    """Makes a local folder and its parents; on an object store there is nothing to make."""
    if is_local(folder):
        os.makedirs(folder, exist_ok=True)


@contextlib.contextmanager
def publishing(path: str) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing that becomes `path` when the block ends without error.

    Nothing is left of it when the block raises. On a local disk, a process killed inside the block
    leaves a file whose name begins with `TEMPORARY_PREFIX`, which `remove_temporaries` removes.
    """
    if not is_local(path):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with (
                _os_errors(path, "written"),
                FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as target,
            ):
                shutil.copyfileobj(file, target, 1 << 20)
        return
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{name}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            _lock(file)
            yield file
            # Otherwise a power cut can leave the final name on a file without content.
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _lock(file: BinaryIO) -> bool:
    """Locks an open file for as long as it is open; returns whether it was free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def publish(path: str, content: str | bytes) -> None:
    """Writes a whole file, atomically; a string as UTF-8."""
    with publishing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove(paths: Iterable[str]) -> None:
    """Removes files; those that are not there are passed over."""
    for path in paths:
        if is_local(path):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
        elif _is_gcs(path):
            with _os_errors(path, "removed"):
                gcs.remove(path)
        elif exists(path):
            try:
                FileSystems.delete([path])
            except BeamIOError:
                if exists(path):
                    raise


def remove_temporaries(folder: str) -> None:
    """Removes what killed processes left half-written in a local folder by `publishing`.

    What a living process writes is locked and stays, so that two runs may share a folder.
    """
    if not is_local(folder):
        return
    for name in list_folder(folder):
        if name.startswith(TEMPORARY_PREFIX):
            path = join(folder, name)
            with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
                if _lock(file):
                    os.remove(path)
