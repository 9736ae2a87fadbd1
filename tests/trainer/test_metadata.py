"""Metadata against what was written, by hand and by TensorFlow Datasets; one error per defect."""

import hashlib
import json

import pytest
import tensorflow_datasets as tfds

from tests.trainer import shards
from trainer import metadata


@pytest.fixture
def folder(tmp_path):
    shards.write(tmp_path, {"train": 20, "test": 9}, image_size=8, num_classes=4)
    return tmp_path


def edit(path, **changes):
    value = json.loads(path.read_text())
    shards.write_json(path, {**value, **changes})


def test_everything_is_read(folder):
    info = metadata.read(folder)
    assert info.data_dir == str(folder)
    assert info.num_classes == len(info.class_names) == 4
    assert info.class_names[1] == "Make1 Model Coupe 2001"
    assert (info.image_size, info.colors, info.encoding) == (8, 8, "indexed")
    assert info.fingerprint == "00ff"
    assert info.preprocessing == json.loads((folder / "preprocessing.json").read_text())
    assert set(info.splits) == {"train", "test"}
    train = info.split("train")
    assert train.num_examples == sum(train.shard_lengths) == 20
    assert train.shard_paths == tuple(sorted(str(p) for p in folder.glob("*-train.tfrecord-*")))


def test_class_table_hash_is_of_names_and_order():
    names = ("a b", "c")
    assert metadata.class_table_hash(names) == hashlib.sha256(b"a b\nc").hexdigest()
    assert metadata.class_table_hash(names) != metadata.class_table_hash(names[::-1])


def test_metadata_of_tensorflow_datasets_is_read(folder):
    before = metadata.read(folder)
    lengths = {name: list(split.shard_lengths) for name, split in before.splits.items()}
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="stanford_cars", filetype_suffix="tfrecord"
    )
    for name in ("dataset_info.json", "label.labels.txt"):
        (folder / name).unlink()
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {"label": tfds.features.ClassLabel(names=before.class_names)}
        ),
        split_infos=[
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=lengths[name],
                num_bytes=1 << 40,
                filename_template=template.replace(split=name),
            )
            for name in lengths
        ],
        filename_template=template,
        check_data=False,
    )
    assert metadata.read(folder) == before


def test_empty_splits_are_left_out(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][1]["shardLengths"] = ["0", "0", "0"]
    shards.write_json(folder / "dataset_info.json", info)
    assert set(metadata.read(folder).splits) == {"train"}


def assert_refused(folder, *words):
    with pytest.raises(metadata.DatasetError) as caught:
        metadata.read(folder)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    for word in (str(folder), *words):
        assert word in text


def test_no_folder(tmp_path):
    assert_refused(tmp_path / "nowhere", "no such folder", "python -m pipeline preprocess")


def test_unfinished_folder(folder):
    (folder / "dataset_info.json").unlink()
    assert_refused(folder, "no dataset_info.json", "did not finish", "again")


@pytest.mark.parametrize("name", ["preprocessing.json", "label.labels.txt"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    assert_refused(folder, name, "missing")


def test_missing_shard(folder):
    path = folder / "stanford_cars-test.tfrecord-00002-of-00003"
    path.unlink()
    assert_refused(folder, path.name, "1 of the 3 shards of split 'test'")


@pytest.mark.parametrize("name", ["preprocessing.json", "dataset_info.json"])
@pytest.mark.parametrize(
    ("content", "word"),
    [(b"{", "not JSON"), (b"[]", "not a JSON object"), (b'{"a": "\xff"}', "not UTF-8")],
)
def test_damaged_json(folder, name, content, word):
    (folder / name).write_bytes(content)
    assert_refused(folder, name, word)


def test_other_format_version(folder):
    edit(folder / "preprocessing.json", format_version=7)
    assert_refused(folder, "format_version is 7", "reads 1")


def test_entry_missing(folder):
    edit(folder / "preprocessing.json", options={"image_size": 8})
    assert_refused(folder, "preprocessing.json", "'colors'")


def test_unknown_encoding(folder):
    edit(
        folder / "preprocessing.json",
        options={"image_size": 8, "colors": 8, "encoding": "zip"},
    )
    assert_refused(folder, "'zip'", "indexed, packed, png, rgb")


@pytest.mark.parametrize(
    ("content", "word"), [("", "no class names"), ("a\nb\na\n", "class 'a' is there twice")]
)
def test_class_table_of_no_use(folder, content, word):
    (folder / "label.labels.txt").write_text(content)
    assert_refused(folder, "label.labels.txt", word)


def test_splits_of_no_use(folder):
    edit(folder / "dataset_info.json", splits=[])
    assert_refused(folder, "no split has records")
    edit(folder / "dataset_info.json", splits=[{"name": "train"}])
    assert_refused(folder, "dataset_info.json", "shardLengths")
