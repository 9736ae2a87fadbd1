import os
import subprocess
import sys
import threading

import pytest

from pipeline import storage
from tests.pipeline import object_store


def test_publishing_replaces_a_file_at_once(tmp_path):
    path = str(tmp_path / "file")
    storage.publish(path, "old")
    with open(path, "rb") as earlier_reader:
        with storage.publishing(path) as file:
            file.write(b"new")
            assert storage.read_bytes(path) == b"old"  # until the block ends
        assert storage.read_text(path) == "new"
        assert earlier_reader.read() == b"old"  # another file, not the same one written over
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


def test_a_file_that_vanishes_while_its_folder_is_listed_is_no_error(tmp_path):
    stop = threading.Event()

    def rename_for_ever():
        while not stop.is_set():
            storage.publish(str(tmp_path / "file"), b"1")

    thread = threading.Thread(target=rename_for_ever)
    thread.start()
    try:
        for _ in range(300):
            assert {name for name in storage.list_folder(str(tmp_path)) if name[0] != "."} <= {
                "file"
            }
    finally:
        stop.set()
        thread.join()


def test_what_a_living_run_writes_is_not_removed(tmp_path):
    path = tmp_path / "file"
    with storage.publishing(str(path)) as file:
        file.write(b"whole")
        storage.remove_temporaries(str(tmp_path))
    assert path.read_bytes() == b"whole"


KILLED_WHILE_PUBLISHING = """
import os, signal, sys
from pipeline import storage
with storage.publishing(sys.argv[1]) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed(tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_PUBLISHING, str(tmp_path / "file")]
    assert subprocess.run(command, check=False).returncode == -9
    [left] = os.listdir(tmp_path)
    assert left.startswith(storage.TEMPORARY_PREFIX)
    storage.remove_temporaries(str(tmp_path))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(object_store, "OBJECTS", {})
    return "fake://bucket/out"


def test_on_an_object_store_a_file_is_created_whole_under_its_final_name(bucket):
    path = storage.join(bucket, "file")
    with storage.publishing(path) as file:
        file.write(b"whole")
        assert object_store.OBJECTS == {}
    assert {path: b"whole"} == object_store.OBJECTS
    with pytest.raises(OSError, match="full"), storage.publishing(path) as file:
        file.write(b"half")
        raise OSError("full")
    assert storage.read_bytes(path) == b"whole"
    with storage.open_binary(path) as file:
        assert file.read() == b"whole"


def test_an_object_store_is_listed_asked_and_emptied(bucket):
    for name in ("a", "_shards/b", "c/d/e"):
        storage.publish(storage.join(bucket, name), name)
    assert storage.list_folder(bucket) == {"a": storage.Entry(1, 1.5)}
    assert storage.list_folder(bucket + "/") == storage.list_folder(bucket)
    assert storage.list_folder(bucket + "/nowhere") == {}
    assert storage.size(storage.join(bucket, "_shards/b")) == 9
    assert storage.size(storage.join(bucket, "b")) is None
    with pytest.raises(FileNotFoundError, match="no such file: fake://bucket/out/b"):
        storage.read_bytes(storage.join(bucket, "b"))
    storage.make_folder(storage.join(bucket, "folder"))
    storage.remove_temporaries(bucket)
    storage.remove([storage.join(bucket, "a"), storage.join(bucket, "b")])
    assert list(object_store.OBJECTS) == [bucket + "/_shards/b", bucket + "/c/d/e"]
