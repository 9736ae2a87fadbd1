"""The order of labels over an epoch against full shuffles of the same labels.

What an epoch looks like is told by how often pictures of one class come together: next to each
other (the runs test), in a batch, and in a stretch of many batches. Each count has a rank among the
counts of 1,000 full shuffles. For an order as random as these, ranks over many data sets are
uniform, which the Kolmogorov–Smirnov test judges. The data are the size of the genuine split, and
sorted by class before the hash of the id, as in the official files of one class after the other.
"""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from pipeline.shards import digest, shard_of
from trainer import data
from trainer.order import RecordOrder

PICTURES, CLASSES, SHARDS = 8_144, 196, 32
BATCH, STRETCH = 64, 640
DATA_SETS = 12


def class_sorted() -> np.ndarray:
    """Returns labels in the order of the pictures' numbers."""
    return np.sort(np.arange(PICTURES) % CLASSES)


def hashed(labels: np.ndarray, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns labels in the order in which the pipeline's shards hold them, and their lengths.

    Another `name` in the ids is another data set.
    """
    ids = [f"{name}/{n:05d}" for n in range(len(labels))]
    shards = [shard_of(id, SHARDS) for id in ids]
    places = sorted(range(len(ids)), key=lambda n: (shards[n], digest(ids[n])))
    return labels[places], tuple(np.bincount(shards, minlength=SHARDS).tolist())


def epoch(labels: np.ndarray, lengths: tuple[int, ...], streams: int, seed: int) -> np.ndarray:
    """Returns the labels of the trainer's first epoch, from labels in shard order."""
    steps = len(labels) // BATCH
    order = RecordOrder(lengths, streams, steps * BATCH // streams, seed)
    starts = np.cumsum((0, *lengths))

    def read(shard: tf.Tensor, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        number = tf.constant(starts, tf.int64)[shard] + first
        return tf.data.Dataset.range(number, number + count)

    rows = BATCH // streams  # of a stream in a batch
    records = data._shuffled(order, range(streams), (0, 0), rows, read).batch(steps * BATCH)
    return labels[next(iter(records)).numpy()]


def counts(labels: np.ndarray) -> np.ndarray:
    """Returns pairs of one class: neighbours, within a batch, within a stretch of batches."""

    def within(size: int) -> int:
        blocks = labels[: len(labels) // size * size].reshape(-1, size)
        cells = np.arange(len(blocks))[:, None] * CLASSES + blocks
        return int((np.bincount(cells.ravel()) ** 2).sum())

    return np.array([(labels[1:] == labels[:-1]).sum(), within(BATCH), within(STRETCH)])


@pytest.fixture(scope="module")
def full_shuffles() -> np.ndarray:
    rng, labels = np.random.default_rng(0), class_sorted()
    used = len(labels) // BATCH * BATCH
    return np.array([counts(rng.permutation(labels)[:used]) for _ in range(1_000)])


def p_values(orders: list[np.ndarray], full: np.ndarray) -> np.ndarray:
    """Returns for each count the probability that full shuffles would differ as much."""
    rng = np.random.default_rng(1)  # ties, by a fraction that decides them evenly
    full = full + rng.random(full.shape)
    mine = np.array([counts(labels) for labels in orders]) + rng.random((len(orders), 3))
    return np.array([stats.ks_2samp(mine[:, n], full[:, n]).pvalue for n in range(3)])


@pytest.mark.parametrize("streams", [1, 8])
def test_labels_come_as_in_a_full_shuffle(full_shuffles, streams):
    orders = [
        epoch(*hashed(class_sorted(), f"set{n}"), streams=streams, seed=n) for n in range(DATA_SETS)
    ]
    assert (p_values(orders, full_shuffles) > 1e-3).all()


def test_the_windows_alone_would_not_do(full_shuffles):
    """A buffer that small over shards in class order is told from a full shuffle at once."""
    lengths = (PICTURES // SHARDS,) * (SHARDS - 1)
    lengths = (*lengths, PICTURES - sum(lengths))
    for streams in (1, 8):
        orders = [epoch(class_sorted(), lengths, streams, seed) for seed in range(DATA_SETS)]
        assert (p_values(orders, full_shuffles) < 1e-8).all(), streams


def test_the_count_tells_orders_that_are_not_random(full_shuffles):
    rng = np.random.default_rng(2)

    def buffered(size: int) -> np.ndarray:
        """Returns class-sorted labels through a shuffle buffer, as `tf.data.Dataset.shuffle`."""
        buffer, out = list(class_sorted()[:size]), []
        for label in class_sorted()[size:]:
            place = rng.integers(size)
            out.append(buffer[place])
            buffer[place] = label
        return np.array(out + rng.permutation(buffer).tolist())[: PICTURES // BATCH * BATCH]

    unshuffled = [class_sorted()[: PICTURES // BATCH * BATCH]] * DATA_SETS
    assert (p_values(unshuffled, full_shuffles) < 1e-8).all()
    assert (p_values([buffered(1024) for _ in range(DATA_SETS)], full_shuffles) < 1e-8).all()
    # And does not cry wolf.
    full = [rng.permutation(class_sorted())[: PICTURES // BATCH * BATCH] for _ in range(DATA_SETS)]
    assert (p_values(full, full_shuffles) > 1e-3).all()
