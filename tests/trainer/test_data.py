"""Batches against the records they were written from; partition, resuming, damage."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer import shards
from trainer import data, metadata, order

TRAIN, TEST = 101, 37  # no number of hosts in the tests divides either
ENCODINGS = ("indexed", "packed", "png", "rgb")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns encoding -> (folder, records of each split)."""
    root = tmp_path_factory.mktemp("shards")
    counts = {"train": TRAIN, "test": TEST}
    return {
        encoding: (root / encoding, shards.write(root / encoding, counts, encoding=encoding))
        for encoding in ENCODINGS
    }


@pytest.fixture
def info(folders):
    return metadata.read(folders["indexed"][0])


@pytest.fixture
def damaged(tmp_path):
    """Returns a folder to break, its records, and the path of its second shard."""
    folder = tmp_path / "data"
    records = shards.write(folder, {"train": 64})["train"]
    return folder, records, folder / "stanford_cars-train.tfrecord-00001-of-00003"


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(order, "_MIN_WINDOW", 4)
    monkeypatch.setattr(order, "_WINDOW_RECORDS", 8)


def take(batches, count):
    return list(itertools.islice(batches, count))


def hash_of(record_id: str) -> int:
    """Returns the low 32 bits of the FarmHash64 of an id, by TensorFlow's other op for it."""
    return int.from_bytes(tf.fingerprint([record_id]).numpy()[0].tobytes()[:4], "little")


def by_hash(records: list[shards.Record]) -> dict[int, shards.Record]:
    table = {hash_of(record.id): record for record in records}
    assert len(table) == len(records)
    return table


def hashes(batches: list[data.Batch]) -> list[int]:
    return np.concatenate([batch["id_hash"] for batch in batches]).tolist()


def assert_row_is(batch: data.Batch, row: int, record: shards.Record, encoding: str) -> None:
    assert batch["label"][row] == record.label
    if encoding in ("png", "rgb"):
        np.testing.assert_array_equal(batch["image"][row], record.image)
        return
    np.testing.assert_array_equal(batch["palette"][row], record.palette)
    if encoding == "packed":
        np.testing.assert_array_equal(batch["packed"][row], shards.pack(record.indices))
    else:
        np.testing.assert_array_equal(batch["indices"][row], record.indices)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_are_the_records(folders, encoding):
    folder, records = folders[encoding]
    table = by_hash(records["train"])
    batches = data.train_batches(
        metadata.read(folder), "train", global_batch=12, seed=3, data_streams=4
    )
    for batch in take(batches, 8):
        names = {"png": {"image"}, "rgb": {"image"}, "packed": {"packed", "palette"}}
        assert set(batch) == {"label", "id_hash"} | names.get(encoding, {"indices", "palette"})
        assert batch["label"].dtype == np.int32
        assert batch["id_hash"].dtype == np.uint32
        assert all(
            value.dtype == np.uint8 for name, value in batch.items() if name in names["packed"]
        )
        for row, key in enumerate(batch["id_hash"].tolist()):
            assert_row_is(batch, row, table[key], encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_evaluation_is_the_split_in_order(folders, encoding):
    folder, records = folders[encoding]
    batches = list(data.eval_batches(metadata.read(folder), "test", global_batch=16))
    assert [batch["mask"].tolist() for batch in batches] == [
        [True] * 16,
        [True] * 16,
        [True] * 5 + [False] * 11,
    ]
    rows = [(batch, row) for batch in batches for row in np.flatnonzero(batch["mask"])]
    for (batch, row), record in zip(rows, records["test"], strict=True):
        assert_row_is(batch, row, record, encoding)
    for name, value in batches[-1].items():
        assert not value[5:].any(), name


@pytest.mark.parametrize("hosts", [1, 2, 3, 5, 8])
def test_evaluation_reads_each_record_once_over_hosts(folders, info, hosts):
    read, counts = [], set()
    for host in range(hosts):
        batches = list(
            data.eval_batches(info, "test", global_batch=2 * hosts, host=host, hosts=hosts)
        )
        counts.add(len(batches))
        assert all(len(batch["label"]) == 2 for batch in batches)
        read += [key for batch in batches for key in batch["id_hash"][batch["mask"]].tolist()]
    assert len(counts) == 1
    assert sorted(read) == sorted(by_hash(folders["indexed"][1]["test"]))


def test_a_host_without_records_evaluates_filling(info):
    (batch,) = data.eval_batches(info, "test", global_batch=64, host=0, hosts=64)
    assert batch["indices"].shape == (1, 16, 16)
    assert batch["mask"].tolist() == [False]


def test_hosts_share_the_batches_of_one_host(folders, info):
    batch, streams, steps = 48, 24, TRAIN // 48
    whole = take(
        data.train_batches(info, "train", global_batch=batch, seed=1, data_streams=streams),
        2 * steps,
    )
    records = folders["indexed"][1]["train"]
    pieces = [
        {hash_of(r.id) for r in records[v * TRAIN // streams : (v + 1) * TRAIN // streams]}
        for v in range(streams)
    ]
    for epoch in range(2):
        assert len(set(hashes(whole[epoch * steps : (epoch + 1) * steps]))) == steps * batch
    for one in whole:
        rows = batch // streams
        assert all(key in pieces[row // rows] for row, key in enumerate(one["id_hash"].tolist()))

    for hosts in (2, 3, 4, 8):  # 3 files: fewer than 4 or 8 hosts
        parts = [
            take(
                data.train_batches(
                    info,
                    "train",
                    global_batch=batch,
                    seed=1,
                    data_streams=streams,
                    host=host,
                    hosts=hosts,
                ),
                2 * steps,
            )
            for host in range(hosts)
        ]
        for step, one in enumerate(whole):
            for name, value in one.items():
                parted = np.concatenate([part[step][name] for part in parts])
                np.testing.assert_array_equal(parted, value)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("cache", [False, True])
def test_resuming_at_any_step_continues_the_stream(info, cache):
    arguments = {"global_batch": 12, "seed": 7, "data_streams": 2}
    whole = take(data.train_batches(info, "train", **arguments), 20)  # 8 steps an epoch
    for start in (2, 7, 13):
        resumed = data.train_batches(info, "train", **arguments, start_step=start, cache=cache)
        for expected, got in zip(whole[start:], resumed, strict=False):
            for name, value in expected.items():
                np.testing.assert_array_equal(got[name], value, err_msg=f"{start} {name}")


def test_order_differs_by_epoch_and_seed_and_by_nothing_else(info):
    def read(seed: int) -> list[int]:
        batches = data.train_batches(info, "train", global_batch=20, seed=seed, data_streams=2)
        return hashes(take(batches, 10))

    first = read(1)
    tf.random.set_seed(99)  # as keras.utils.set_random_seed does
    assert read(1) == first
    assert read(2)[:100] != first[:100]
    assert first[:100] != first[100:]


def test_every_record_has_its_turn(folders, info):
    batches = data.train_batches(info, "train", global_batch=48, seed=0, data_streams=2)
    seen = set(hashes(take(batches, 2 * 12)))  # 5 of 101 are left out of each epoch
    assert seen == set(by_hash(folders["indexed"][1]["train"]))


def test_a_path_with_a_scheme_gives_the_same_batches(folders, info):
    split = info.splits["train"]
    urls = tuple(f"file://{path}" for path in split.shard_paths)
    remote = dataclasses.replace(
        info,
        data_dir=f"file://{info.data_dir}",
        splits={"train": dataclasses.replace(split, shard_paths=urls)},
    )
    arguments = {"global_batch": 16, "seed": 7, "data_streams": 4}
    local = take(data.train_batches(info, "train", **arguments), 7)
    assert hashes(local) == hashes(take(data.train_batches(remote, "train", **arguments), 7))


def equal_neighbours(labels: np.ndarray, distance: int) -> int:
    return int((labels[distance:] == labels[:-distance]).sum())


def test_labels_are_mixed_as_by_a_full_shuffle(tmp_path):
    count = 3000
    records = shards.write(tmp_path, {"train": count}, image_size=8, colors=2, num_classes=10)
    labels = np.array([record.label for record in records["train"]])
    rng = np.random.default_rng(0)
    shuffles = [rng.permutation(labels) for _ in range(200)]
    batches = data.train_batches(
        metadata.read(tmp_path), "train", global_batch=100, seed=0, data_streams=4
    )
    epoch = np.concatenate([batch["label"] for batch in take(batches, count // 100)])
    assert sorted(epoch) == sorted(labels)
    for distance in (1, 2, 4, 8, 100):
        reference = [equal_neighbours(s, distance) for s in shuffles]
        z = (equal_neighbours(epoch, distance) - np.mean(reference)) / np.std(reference)
        assert abs(z) < 4, distance
    # Counts of each class in each tenth of the epoch: chi-square, 81 degrees of freedom.
    table = np.stack([np.bincount(part, minlength=10) for part in np.split(epoch, 10)])
    assert ((table - 30) ** 2 / 30).sum() < 81 + 4 * np.sqrt(2 * 81)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"global_batch": 20},
            r"--data_streams=8 does not divide the global batch of 20.*16 and 2",
        ),
        ({"global_batch": 4}, r"the nearest batches that fit: 8$"),
        ({"hosts": 3}, r"3 hosts do not divide --data_streams=8.*6 and 9"),
        ({"host": 2, "hosts": 2}, r"host 2 of 2"),
        ({"data_streams": 0}, r"data_streams=0"),
        (
            {"global_batch": 104},
            r"split 'train' has 101 records, less than one global batch of 104",
        ),
        ({"start_step": -1}, r"start step -1"),
        ({"seed": -1}, r"seed -1"),
    ],
)
def test_numbers_that_do_not_go_together(info, change, message):
    arguments = {"global_batch": 16, "seed": 0, "data_streams": 8, **change}
    with pytest.raises(ValueError, match=message):
        data.train_batches(info, "train", **arguments)


def test_evaluation_batch_must_divide_over_hosts(info):
    with pytest.raises(ValueError, match="3 hosts do not divide the global batch of 16.*15 and 18"):
        data.eval_batches(info, "test", global_batch=16, hosts=3)


def test_steps_per_epoch(info):
    assert data.steps_per_epoch(info, "train", 16) == 6
    assert data.steps_per_epoch(info, "train", 101) == 1
    with pytest.raises(ValueError, match="at most 101"):
        data.steps_per_epoch(info, "train", 102)
    with pytest.raises(metadata.DatasetError, match="no split 'dev'; it holds test, train"):
        data.steps_per_epoch(info, "dev", 16)


def test_pictures_of_their_own_size_make_no_batch(folders):
    folder, _ = folders["png"]
    own_size = dataclasses.replace(metadata.read(folder), image_size=0)
    with pytest.raises(metadata.DatasetError, match="image_size is 0.*--image_size"):
        data.eval_batches(own_size, "test", global_batch=16)


def assert_blamed(batches, path: Path, *words: str) -> None:
    """Asserts that reading fails with an error that names the file and says what is wrong."""
    with pytest.raises(metadata.DatasetError) as caught:
        take(batches, 20)
    text = str(caught.value)
    assert str(path) in text
    assert len(text.splitlines()) <= 2
    for word in words:
        assert word in text


def evaluation(folder: Path):
    return data.eval_batches(metadata.read(folder), "train", global_batch=8)


def rewrite(path: Path, serialized: list[bytes]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in serialized:
            writer.write(record)


def serialized_records(path: Path) -> list[bytes]:
    return [record.numpy() for record in tf.data.TFRecordDataset(str(path))]


def test_a_flipped_byte_is_blamed_on_its_record(damaged):
    folder, _, path = damaged
    content = bytearray(path.read_bytes())
    size = 16 + int.from_bytes(content[:8], "little")
    content[2 * size + 100] ^= 1  # records have all one size here
    path.write_bytes(content)
    info = metadata.read(folder)
    arguments = {"global_batch": 8, "seed": 0, "data_streams": 2}
    for batches in (
        data.train_batches(info, "train", **arguments),
        data.train_batches(info, "train", **arguments, cache=True),
        data.eval_batches(info, "train", global_batch=8),
    ):
        assert_blamed(batches, path, "record 2 of", "corrupted record")


def test_a_truncated_shard_is_blamed(damaged):
    folder, records, path = damaged
    path.write_bytes(path.read_bytes()[:-7])
    last = sum(record.shard == 1 for record in records) - 1
    assert_blamed(evaluation(folder), path, f"record {last} of", "truncated record")


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_records_is_blamed(damaged, change):
    folder, records, path = damaged
    serialized = serialized_records(path)
    rewrite(path, serialized[:-1] if change < 0 else [*serialized, serialized[0]])
    count = sum(record.shard == 1 for record in records)
    assert_blamed(
        evaluation(folder), path, f"{count + change} records, dataset_info.json says {count}"
    )


def test_a_shard_that_goes_missing_is_blamed(damaged):
    folder, _, path = damaged
    info = metadata.read(folder)
    path.unlink()
    assert_blamed(data.eval_batches(info, "train", global_batch=8), path, "missing")


@pytest.mark.parametrize(
    ("feature", "value", "word"),
    [
        ("label", 5, "class table"),
        ("label", -1, "class table"),
        ("palette", bytes(3 * 7), "shape"),
        ("indices", bytes(16 * 15), "shape"),
        ("id", None, "id"),
    ],
)
def test_a_record_that_is_not_as_the_metadata_says_is_blamed(damaged, feature, value, word):
    folder, _, path = damaged
    serialized = serialized_records(path)
    example = tf.train.Example.FromString(serialized[3])
    entry = example.features.feature[feature]
    if value is None:
        del example.features.feature[feature]
    elif isinstance(value, int):
        entry.int64_list.value[0] = value
    else:
        entry.bytes_list.value[0] = value
    rewrite(path, [*serialized[:3], example.SerializeToString(), *serialized[4:]])
    assert_blamed(evaluation(folder), path, "record 3 of", word)
