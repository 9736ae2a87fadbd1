"""The record order against lists: cutting, partition, and what an epoch may change."""

import itertools

import numpy as np
import pytest

from trainer import order

LENGTHS = [
    (10,),
    (3, 0, 7, 1),  # an empty shard
    (1,) * 12,
    (101,),
    (40, 37, 0, 24),
]


def sequence(segments: order.Segments) -> list[tuple[int, int]]:
    """Returns (shard, record) of each record that segments stand for."""
    return [(s, r) for s, first, count in segments.tolist() for r in range(first, first + count)]


def all_records(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(shard, record) for shard, length in enumerate(lengths) for record in range(length)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_cut_is_a_slice_of_the_sequence(lengths):
    whole = np.array([(shard, 0, length) for shard, length in enumerate(lengths)], np.int64)
    records = all_records(lengths)
    for start in range(len(records) + 2):
        for stop in range(start, len(records) + 2, 3):
            assert sequence(order.cut(whole, start, stop)) == records[start:stop]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("streams", [1, 2, 3, 4, 8])
def test_streams_cut_the_sequence_into_equal_pieces(lengths, streams):
    plan = order.RecordOrder(lengths, streams, used=1, seed=0)
    pieces = [sequence(plan.stream(stream)) for stream in range(streams)]
    assert list(itertools.chain(*pieces)) == all_records(lengths)
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_epoch_delivers_records_of_its_stream_once(lengths):
    streams, used = 2, sum(lengths) // 2
    plan = order.RecordOrder(lengths, streams, used, seed=5)
    for stream in range(streams):
        for epoch in range(4):
            delivered = sequence(plan.epoch(stream, epoch, 0)[0])
            assert len(delivered) == len(set(delivered)) == used
            assert set(delivered) <= set(sequence(plan.stream(stream)))


def test_skipping_windows_leaves_the_rest_as_it_was(monkeypatch):
    monkeypatch.setattr(order, "_MIN_WINDOW", 8)
    monkeypatch.setattr(order, "_WINDOW_RECORDS", 16)
    plan = order.RecordOrder((40, 37, 24), 2, used=48, seed=5)
    assert plan.window == 8
    whole, seed = plan.epoch(1, 3, 0)
    for skip in range(7):
        rest, rest_seed = plan.epoch(1, 3, skip)
        assert sequence(rest) == sequence(whole)[8 * skip :]
        assert rest_seed == seed + skip


def test_order_is_of_seed_epoch_and_stream():
    def delivered(seed: int, epoch: int) -> list[tuple[int, int]]:
        return sequence(order.RecordOrder((64, 64), 1, 128, seed).epoch(0, epoch, 0)[0])

    assert delivered(1, 2) == delivered(1, 2)
    assert delivered(1, 2) != delivered(1, 3)
    assert delivered(1, 2) != delivered(2, 2)


def test_every_record_is_left_out_equally_often():
    plan = order.RecordOrder((30, 20), 1, used=25, seed=0)
    epochs = 2000
    counts = np.zeros(50)
    for epoch in range(epochs):
        for shard, record in sequence(plan.epoch(0, epoch, 0)[0]):
            counts[30 * shard + record] += 1
    # Binomial(2000, 1/2) has a deviation of 22; 4.5 of them for the extreme of 50.
    assert np.abs(counts - epochs / 2).max() < 100


def test_windows_depend_on_the_streams_alone():
    assert order.RecordOrder((1000,), 1, 1000, 0).window == 1024
    assert order.RecordOrder((1000,), 8, 125, 0).window == 128
    assert order.RecordOrder((1000,), 64, 15, 0).window == 64
