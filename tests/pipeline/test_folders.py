import os
from pathlib import PurePosixPath
from typing import ClassVar

import pytest
from apache_beam.io.filesystem import FileMetadata, FileSystem

from pipeline import folders
from pipeline.folders import Contents, LayoutError

JPG = frozenset({".jpg"})


def make(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())


def relative_paths(folder, extensions=JPG):
    return sorted(file.relative_path for file in folders.list_files(str(folder), extensions))


class Bucket(FileSystem):
    """A store of objects, as Cloud Storage is: no folders, and a listing is by prefix."""

    objects: ClassVar[dict[str, bytes]] = {}
    listings: ClassVar[list[str]] = []

    @classmethod
    def scheme(cls):
        return "bucket"

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        self.listings.append(dir_or_prefix)
        for path, content in self.objects.items():
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(content), 1.5)

    def exists(self, path):
        return path in self.objects

    def join(self, basepath, *paths):
        return "/".join((basepath.rstrip("/"), *paths))

    def split(self, path):
        raise NotImplementedError

    mkdirs = create = open = copy = rename = size = last_updated = checksum = metadata = split
    delete = split


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(Bucket, "objects", {})
    monkeypatch.setattr(Bucket, "listings", [])
    return Bucket


def test_files_are_listed_at_any_depth_with_size_and_time(tmp_path):
    make(tmp_path, "b/c/2.jpg", "1.jpg", "a b/[x]*?.jpg", "b/notes.txt")
    os.utime(tmp_path / "1.jpg", (1, 1234.5))
    files = sorted(folders.list_files(str(tmp_path), JPG), key=lambda file: file.relative_path)
    assert [file.relative_path for file in files] == ["1.jpg", "a b/[x]*?.jpg", "b/c/2.jpg"]
    assert files[0] == folders.File(str(tmp_path / "1.jpg"), "1.jpg", len("1.jpg"), 1234.5)
    assert files[2].folders == ("b", "c")


@pytest.mark.parametrize(
    "name",
    ["._1.jpg", ".hidden/1.jpg", "__MACOSX/1.jpg", "a/__MACOSX/1.jpg", "1.jpg.txt", "jpg"],
)
def test_hidden_and_other_files_are_passed_over(tmp_path, bucket, name):
    make(tmp_path, name, "kept.jpg")
    assert relative_paths(tmp_path) == ["kept.jpg"]
    bucket.objects.update({f"bucket://b/d/{name}": b"", "bucket://b/d/kept.jpg": b""})
    assert relative_paths("bucket://b/d") == ["kept.jpg"]


def test_extensions_are_matched_in_any_case(tmp_path):
    make(tmp_path, "a.JPG", "b.Jpg")
    assert relative_paths(tmp_path) == ["a.JPG", "b.Jpg"]


def test_the_name_splits_into_stem_and_extension(tmp_path):
    make(tmp_path, "d/a.b.JPG")
    (file,) = folders.list_files(str(tmp_path), JPG)
    assert (file.name, file.stem, file.extension) == ("a.b.JPG", "a.b", ".jpg")


def test_links_to_folders_and_files_are_followed(tmp_path):
    make(tmp_path, "disk/cars/1.jpg", "disk/2.jpg", "data/0.jpg")
    (tmp_path / "data/cars_train").symlink_to(tmp_path / "disk/cars")
    (tmp_path / "data/3.jpg").symlink_to(tmp_path / "disk/2.jpg")
    (tmp_path / "data/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    expected = ["0.jpg", "3.jpg", "cars_train/1.jpg"]
    assert relative_paths(tmp_path / "data") == expected
    assert relative_paths(tmp_path / "link") == expected


def test_links_that_lead_back_end(tmp_path):
    make(tmp_path, "data/a/b/1.jpg")
    (tmp_path / "data/a/b/up").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/a/self").symlink_to("self")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert relative_paths(tmp_path / "data") == ["a/b/1.jpg"]
    assert relative_paths(tmp_path / "link") == ["a/b/1.jpg"]  # where a/b is not a real path


def test_a_relative_folder_gives_full_paths(tmp_path, monkeypatch):
    make(tmp_path, "d/1.jpg")
    monkeypatch.chdir(tmp_path)
    (file,) = folders.list_files("d", JPG)
    assert file.path == str(tmp_path / "d/1.jpg")


@pytest.mark.parametrize(
    ("folder", "message"),
    [("gone", "does not exist"), ("file", "is a file"), ("empty", "is empty")],
)
def test_a_folder_that_cannot_be_the_data_is_named(tmp_path, folder, message):
    make(tmp_path, "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match=message) as error:
        list(folders.list_files(str(tmp_path / folder), JPG))
    assert str(tmp_path / folder) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    make(tmp_path, "closed/1.jpg")
    scandir = os.scandir

    def refuse(path):  # permissions do not stop root, whom containers run tests as
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        LayoutError, match="cannot list the data folder .*Permission denied.*closed"
    ):
        list(folders.list_files(str(tmp_path), JPG))


def test_a_name_that_is_not_unicode_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    with pytest.raises(LayoutError, match="not valid UTF-8"):
        list(folders.list_files(str(tmp_path), JPG))


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_bucket_is_listed_once_and_read_by_full_paths(bucket, slash):
    bucket.objects.update(
        {
            "bucket://b/data/train/A/2.jpg": b"22",
            "bucket://b/data/1.jpg": b"1",
            "bucket://b/data/": b"",  # what consoles write for an empty folder
            "bucket://b/database/3.jpg": b"",
        }
    )
    assert set(folders.list_files("bucket://b/data" + slash, JPG)) == {
        folders.File("bucket://b/data/1.jpg", "1.jpg", 1, 1.5),
        folders.File("bucket://b/data/train/A/2.jpg", "train/A/2.jpg", 2, 1.5),
    }
    assert bucket.listings == ["bucket://b/data/"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("bucket://b/gone", "does not exist or is empty"),
        ("bucket://b/1.jpg", "is a file"),
        ("bucket://b/a*", "rename it"),
        ("nothing://b/a", "cannot list .*nothing://b/a"),
    ],
)
def test_a_bucket_that_cannot_be_the_data_is_named(bucket, folder, message):
    bucket.objects["bucket://b/1.jpg"] = b""
    with pytest.raises(LayoutError, match=message):
        list(folders.list_files(folder, JPG))


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("cars_train/1.jpg", "devkit"),
        ("cars_train/cars_train/1.jpg", "devkit"),
        ("x/cars_test/1.JPEG", "devkit"),
        ("cars_test/images/1.png", "devkit"),
        ("car_ims/1.webp", "car_ims"),
        ("car_ims/car_ims/1.jpg", "car_ims"),
        ("train/A/1.jpg", "class_folders"),
        ("car_data/car_data/test/A/1.jpg", "class_folders"),
        ("Valid/A/1.jpg", "class_folders"),
        ("train/test/1.jpg", "class_folders"),  # a class may have the name of a split
        ("train/cars_train/1.jpg", "devkit"),  # but not that of an official folder
        ("train/1.jpg", "elsewhere"),
        ("train/A/more/1.jpg", "elsewhere"),
        ("A/1.jpg", "elsewhere"),
        ("1.jpg", "elsewhere"),
    ],
)
def test_each_picture_belongs_to_one_layout_at_most(tmp_path, path, group):
    make(tmp_path, path)
    contents = Contents.of_folder(str(tmp_path))
    filled = {
        name
        for name in ("devkit", "car_ims", "class_folders", "elsewhere")
        if getattr(contents, name)
    }
    assert filled == {group}


def test_the_innermost_official_folder_decides_the_split(tmp_path):
    make(tmp_path, "cars_train/cars_test/1.jpg", "cars_train/2.jpg")
    contents = Contents.of_folder(str(tmp_path))
    assert {split: [f.name for f in files] for split, files in contents.devkit.items()} == {
        "test": ["1.jpg"],
        "train": ["2.jpg"],
    }


def test_equal_copies_of_an_annotation_file_are_one_and_others_an_error(tmp_path):
    make(tmp_path, "1.jpg")
    names = ["devkit/names.csv", "names.csv", "devkit/names (1).csv"]
    for name in names:
        (tmp_path / PurePosixPath(name).parent).mkdir(exist_ok=True)
        (tmp_path / name).write_text("A")
    contents = Contents.of_folder(str(tmp_path))
    found = contents.annotation_file("names.csv")
    assert found is not None
    assert found.relative_path == "names.csv"
    assert contents.annotation_file("cars_meta.mat") is None
    (tmp_path / "devkit/names (1).csv").write_text("B")
    with pytest.raises(LayoutError, match=r"names\.csv and devkit/names \(1\)\.csv"):
        contents.annotation_file("names.csv")
