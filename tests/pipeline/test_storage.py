import os

import pytest

from pipeline import storage


def test_publishing_replaces_a_file_at_once(tmp_path):
    path = str(tmp_path / "file")
    storage.publish(path, "old")
    with storage.publishing(path) as file:
        file.write(b"new")
        assert storage.read_bytes(path) == b"old"  # until the block ends
    assert storage.read_text(path) == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_publishing_leaves_nothing_when_the_block_raises(tmp_path):
    with pytest.raises(OSError, match="disk full"), storage.publishing(str(tmp_path / "f")) as file:
        file.write(b"half")
        raise OSError("disk full")
    assert os.listdir(tmp_path) == []


def test_a_published_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    storage.publish(str(tmp_path / "published"), "")
    assert (tmp_path / "published").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_only_temporaries_of_this_program_are_removed(tmp_path):
    names = [".tmp-left-by-a-kill", "tmp-of-somebody", ".hidden", "shard"]
    for name in names:
        (tmp_path / name).write_text("")
    storage.remove_temporaries(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


def test_read_ahead_keeps_the_order_and_bounds_the_window(tmp_path):
    paths = [str(tmp_path / f"{i}") for i in range(50)]
    for i, path in enumerate(paths):
        storage.publish(path, str(i))
    asked = []

    def asking():
        for path in paths:
            asked.append(path)
            yield path

    for i, content in enumerate(storage.read_ahead(asking(), threads=3, window=5)):
        assert content == str(i).encode()
        assert len(asked) <= i + 5


def test_read_ahead_raises_at_the_turn_of_the_file(tmp_path):
    storage.publish(str(tmp_path / "a"), "a")
    contents = storage.read_ahead([str(tmp_path / "a"), str(tmp_path / "no")], threads=2, window=4)
    assert next(contents) == b"a"
    with pytest.raises(FileNotFoundError):
        next(contents)


def test_list_folder_gives_sizes_and_leaves_folders_out(tmp_path):
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "folder").mkdir()
    entries = storage.list_folder(str(tmp_path))
    assert {name: entry.size for name, entry in entries.items()} == {"file": 3}
    assert entries["file"].modified == (tmp_path / "file").stat().st_mtime
    assert storage.list_folder(str(tmp_path / "nowhere")) == {}


def test_size_and_remove_know_a_file_that_is_not_there(tmp_path):
    path = str(tmp_path / "file")
    assert storage.size(path) is None
    storage.publish(path, b"12345")
    assert storage.size(path) == 5
    storage.remove([path, path])
    assert not storage.exists(path)
