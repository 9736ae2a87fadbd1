"""An object store in memory, `fake://bucket/name`, for Beam's FileSystems in this process.

Like the real ones it has no folders, and what is written appears when the writer is closed.
Unlike them it refuses to rename or copy, so that a test fails where the program would.
"""

import io
from collections.abc import Iterator

from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem

OBJECTS: dict[str, bytes] = {}


class _Writer(io.BytesIO):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            OBJECTS[self._path] = self.getvalue()
        super().close()


class FakeStore(FileSystem):
    """Found by Beam because it is a subclass of FileSystem."""

    @classmethod
    def scheme(cls) -> str:
        return "fake"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path: str) -> tuple[str, str]:
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path: str) -> None:
        raise AssertionError(f"a folder made in a store without folders: {path}")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path, data in sorted(OBJECTS.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(data), 1.5)

    def create(self, path: str, *_: object, **__: object) -> io.BytesIO:
        return _Writer(path)

    def open(self, path: str, *_: object, **__: object) -> io.BytesIO:
        if path not in OBJECTS:
            raise BeamIOError(f"no object {path}")
        return io.BytesIO(OBJECTS[path])

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise AssertionError(f"copied: {source_file_names}")

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise AssertionError(f"renamed: {source_file_names}")

    def exists(self, path: str) -> bool:
        return path in OBJECTS

    def size(self, path: str) -> int:
        return len(OBJECTS[path])

    def last_updated(self, path: str) -> float:
        return 1.5

    def checksum(self, path: str) -> str:
        return str(hash(OBJECTS[path]))

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, len(OBJECTS[path]), 1.5)

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            if path not in OBJECTS:
                raise BeamIOError(f"no object {path}")
            del OBJECTS[path]
