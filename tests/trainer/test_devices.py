"""Batches on their way to the devices."""

import itertools
import time

import jax
import numpy as np
import pytest

from trainer.devices import Devices, Feed
from trainer.metadata import DatasetError


@pytest.mark.parametrize(("count", "rows"), [(1, 7), (2, 8), (3, 9), (5, 10), (8, 8)])
def test_rows_that_fit(count, rows):
    assert Devices.of(jax.devices()[:count]).rows_that_fit(7) == rows


def test_a_batch_is_split_by_rows_in_order():
    devices = Devices.of(jax.devices()[:4])
    rows = np.arange(8)
    placed = devices.put_batch({"rows": rows})["rows"]
    assert [shard.data.tolist() for shard in placed.addressable_shards] == [
        [0, 1], [2, 3], [4, 5], [6, 7]
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 8])
def test_a_replicated_array_does_not_share_memory_with_its_source(count):
    devices = Devices.of(jax.devices()[:count])
    memory = np.zeros(1024 + 64, np.uint8)
    start = -memory.ctypes.data % 64  # JAX aliases aligned arrays only
    source = memory[start : start + 1024].view(np.float32)
    placed = jax.block_until_ready(devices.replicate(source))
    source[:] = 1
    assert not np.asarray(placed).any()


def test_the_feed_keeps_the_order_and_stops_reading_when_left():
    taken = []

    def batches():
        for number in itertools.count():
            taken.append(number)
            yield {"rows": np.full(8, number)}

    with Feed(batches(), Devices.of()) as feed:
        found = [int(feed.next()["rows"][0]) for _ in range(5)]
    assert found == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 2  # two ahead


def test_an_error_of_reading_arrives_where_the_batch_would_have():
    def batches():
        yield {"rows": np.zeros(8)}
        raise DatasetError("shard 3 is damaged")

    with Feed(batches(), Devices.of()) as feed:
        feed.next()
        with pytest.raises(DatasetError, match="shard 3"):
            feed.next()


@pytest.mark.parametrize("slow", [False, True])
def test_only_starving_counts_as_waiting(slow):
    def batches():
        while True:
            if slow:
                time.sleep(0.05)
            yield {"rows": np.zeros(8)}

    with Feed(batches(), Devices.of()) as feed:
        for _ in range(4):
            if not slow:
                time.sleep(0.05)  # the step
            feed.next()
    assert feed.waited > 0.1 if slow else feed.waited < 0.1
