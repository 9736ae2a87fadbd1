"""The files of a data folder, on any file system that Beam reads, sorted by what they can be.

Each folder is listed once; nothing is looked up file by file, so that 16,185 pictures in a bucket
cost a few requests.
"""

import collections
import dataclasses
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems

from pipeline import storage
from pipeline.spool import Sorter, Value

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp"})

SPLIT_OF_FOLDER = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}

_PATTERN_CHARACTERS = "*?["

# Browsers number a second download; the copy most people were pointed to ends in " (1).mat".
_DOWNLOAD_NUMBER = re.compile(r" ?\(\d+\)(?=\.\w+$)")


class LayoutError(ValueError):
    """The data folder, or an annotation file in it, is not what it must be."""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file below a listed folder.

    Attributes:
        path: full path, to be opened by Beam's FileSystems.
        relative_path: path relative to the listed folder, with forward slashes.
        size: bytes.
        modified: time of the last change, seconds since 1970; 0.0 where the file system has none.
    """

    path: str
    relative_path: str
    size: int
    modified: float

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders on the way to the file, outermost first."""
        return tuple(self.relative_path.split("/")[:-1])

    @property
    def name(self) -> str:
        """The file's name, without folders."""
        return self.relative_path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return posixpath.splitext(self.name)[0]

    @property
    def extension(self) -> str:
        """The extension in lower case, with its dot."""
        return extension(self.name)


def extension(name: str) -> str:
    """Returns the extension of a file's name, in lower case and with its dot."""
    return posixpath.splitext(name)[1].lower()


def list_files(folder: str, extensions: frozenset[str]) -> Iterator[File]:
    """Lists all files below a folder, at any depth, holding none of them.

    Hidden files and folders (a leading dot, which covers the `._` files of macOS) and `__MACOSX`
    are passed over. On this machine symbolic links are followed, except back into a folder that
    is being listed.

    Args:
        folder: path of the folder, local or of any Beam file system.
        extensions: which extensions to list, in lower case and with the dot.

    Yields:
        The files, in no order.

    Raises:
        LayoutError: if the folder does not exist, is a file, is empty or cannot be listed, or if a
            file's name is not valid Unicode.
    """
    list_ = _list_local if storage.is_local(folder) else _list_remote
    try:
        for file in list_(folder, extensions):
            # An id is hashed as UTF-8; a name with stray bytes (a surrogate in Python) has none.
            try:
                file.relative_path.encode()
            except UnicodeEncodeError as error:
                raise LayoutError(
                    f"the name of {file.relative_path!r} in {folder} is not valid UTF-8; rename it"
                ) from error
            yield file
    except (BeamIOError, OSError) as error:
        raise LayoutError(f"cannot list the data folder {folder}: {error}") from error


def read(file: File) -> bytes:
    """Returns the content of an annotation file; raises `LayoutError` if it cannot be read."""
    try:
        return storage.read_bytes(file.path)
    except OSError as error:
        raise LayoutError(f"cannot read {file.path}: {error}") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _list_local(folder: str, extensions: frozenset[str]) -> Iterator[File]:
    # FileSystems.match lists local folders by os.walk, which passes over symbolic links to folders
    # (seen with Beam 2.77), and people link cars_train from another disk.
    top = os.path.abspath(folder)
    if not os.path.exists(top):
        raise LayoutError(f"the data folder {folder} does not exist")
    if not os.path.isdir(top):
        raise LayoutError(
            f"the data folder {folder} is a file; give the folder that holds the data"
        )
    if not os.listdir(top):
        raise LayoutError(f"the data folder {folder} is empty")
    pending = [(top, "", os.path.realpath(top), frozenset[str]())]
    while pending:
        path, prefix, real_path, above = pending.pop()
        above |= {real_path}
        with os.scandir(path) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                # os.path.isdir, because DirEntry.is_dir raises on a link that points to itself.
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    real = (
                        os.path.realpath(entry.path)
                        if entry.is_symlink()
                        else os.path.join(real_path, entry.name)
                    )
                    if real not in above:
                        pending.append((entry.path, f"{prefix}{entry.name}/", real, above))
                elif extension(entry.name) in extensions and os.path.isfile(entry.path):
                    status = entry.stat()
                    yield File(entry.path, prefix + entry.name, status.st_size, status.st_mtime)


def _list_remote(folder: str, extensions: frozenset[str]) -> Iterator[File]:
    if any(character in folder for character in _PATTERN_CHARACTERS):
        raise LayoutError(
            f"the data folder {folder} has one of {' '.join(_PATTERN_CHARACTERS)} in its name, "
            "which cannot be told from a pattern there; rename it"
        )
    prefix = folder.rstrip("/") + "/"
    try:
        found = _below(prefix)
        first = next(found, None)
    except ValueError as error:  # an unknown scheme, or apache-beam[gcp] is not installed
        raise LayoutError(f"cannot list the data folder {folder}: {error}") from error
    if first is None:
        raise LayoutError(
            f"the data folder {folder} is a file; give the folder that holds the data"
            if FileSystems.exists(folder.rstrip("/"))
            else f"the data folder {folder} does not exist or is empty"
        )
    for metadata in itertools.chain([first], found):
        relative_path = metadata.path.removeprefix(prefix)
        if extension(relative_path) in extensions and not any(
            map(_is_hidden, relative_path.split("/"))
        ):
            yield File(
                metadata.path,
                relative_path,
                metadata.size_in_bytes,
                float(metadata.last_updated_in_seconds or 0.0),
            )


def _below(prefix: str) -> Iterator[FileMetadata]:
    """Yields what a remote folder holds, at any depth."""
    system = FileSystems.get_filesystem(prefix)
    if system.has_dirs():
        (match,) = FileSystems.match([prefix + "**"])
        yield from match.metadata_list
    else:
        # match() makes a list of all objects, with 10 million of them several GB; this, which
        # every store implements, yields them as the pages of the listing come.
        yield from system._list(prefix)


@dataclasses.dataclass(frozen=True)
class Contents:
    """The files of a data folder, sorted by what they can be; pictures are kept on disk.

    Attributes:
        data_dir: the folder, as the user gave it.
        devkit: pictures below `cars_train` and `cars_test`, by split.
        car_ims: pictures below `car_ims`.
        class_folders: pictures at `<root>/<split folder>/<class>/`, by root and split folder.
        elsewhere: all other pictures.
        annotation_files: `.mat` and `.csv` files, by name.
    """

    data_dir: str
    devkit: Mapping[str, Sequence[File]]
    car_ims: Sequence[File]
    class_folders: Mapping[str, Mapping[str, Sequence[File]]]
    elsewhere: Sequence[File]
    annotation_files: Mapping[str, Sequence[File]]

    @classmethod
    def of_folder(cls, data_dir: str) -> "Contents":
        """Lists a data folder; raises `LayoutError` as `list_files` does."""
        return cls.of_files(data_dir, list_files(data_dir, IMAGE_EXTENSIONS | {".mat", ".csv"}))

    @classmethod
    def of_files(cls, data_dir: str, files: Iterable[File]) -> "Contents":
        """Returns the contents of a folder that holds these files."""
        annotation_files: dict[str, list[File]] = collections.defaultdict(list)

        def pictures() -> Iterator[tuple[Value, ...]]:
            for file in files:
                if file.extension in IMAGE_EXTENSIONS:
                    row = (file.relative_path, file.path, file.size, file.modified)
                    yield (*_group(file.folders), *row)
                else:
                    annotation_files[_DOWNLOAD_NUMBER.sub("", file.name)].append(file)

        sorter = Sorter(columns=7, by=4)
        sorter.extend(pictures())
        groups = sorter.sorted(_file).groups(3)
        devkit: dict[str, Sequence[File]] = {}
        class_folders: dict[str, dict[str, Sequence[File]]] = collections.defaultdict(dict)
        for (layout, one, two), rows in groups.items():
            if layout == "devkit":
                devkit[one] = rows
            elif layout == "class_folders":
                class_folders[one][two] = rows
        return cls(
            data_dir,
            devkit,
            groups.get(("car_ims", "", ""), ()),
            class_folders,
            groups.get(("elsewhere", "", ""), ()),
            annotation_files,
        )

    def annotation_file(self, name: str) -> File | None:
        """Returns the annotation file of this name, the outermost of equal copies, or None.

        Raises:
            LayoutError: if there are several that differ.
        """
        files = sorted(
            self.annotation_files.get(name, ()), key=lambda file: (len(file.folders), file.path)
        )
        if not files:
            return None
        first, *others = files
        for other in others:
            if read(other) != read(first):
                raise LayoutError(
                    f"{first.relative_path} and {other.relative_path} in {self.data_dir} differ; "
                    "remove the wrong one"
                )
        return first

    def unrecognised(self, problem: str) -> LayoutError:
        """Returns the error for a folder that does not fit, with what there is in it."""
        folders = [group for root in self.class_folders.values() for group in root.values()]
        groups = [g for g in (*self.devkit.values(), self.car_ims, *folders, self.elsewhere) if g]
        pictures = sum(map(len, groups))
        known = sorted(file.relative_path for v in self.annotation_files.values() for file in v)
        return LayoutError(
            f"{problem}\nFound {pictures:,} pictures"
            + (f", such as {groups[0][0].relative_path}" if groups else "")
            + f"; .mat and .csv files: {', '.join(known[:5]) or 'none'}."
        )


def _group(above: tuple[str, ...]) -> tuple[str, str, str]:
    """Returns what a picture in these folders can be: layout, and which group of it."""
    official = [name for name in above if name in ("cars_train", "cars_test", "car_ims")]
    if official:
        split = official[-1].removeprefix("cars_")
        return ("car_ims", "", "") if split == "car_ims" else ("devkit", split, "")
    if len(above) >= 2 and above[-2].lower() in SPLIT_OF_FOLDER:
        return "class_folders", "/".join(above[:-2]), above[-2]
    return "elsewhere", "", ""


def _file(
    _layout: str, _one: str, _two: str, relative_path: str, path: str, size: int, modified: float
) -> File:
    return File(path, relative_path, size, modified)
