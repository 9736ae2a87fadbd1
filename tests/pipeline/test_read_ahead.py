import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.read_ahead import Limits, read_ahead


def reading_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


class Gauge:
    """Counts what was read and not yet taken, and its bytes; a taken item is given back."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.items = self.bytes = 0
        self.most_items = self.most_bytes = 0
        self.lock = threading.Lock()

    def read(self, item):
        with self.lock:
            self.items += 1
            self.bytes += self.sizes[item]
            self.most_items = max(self.most_items, self.items)
            self.most_bytes = max(self.most_bytes, self.bytes)
        return item

    def take(self, item):
        with self.lock:
            self.items -= 1
            self.bytes -= self.sizes[item]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=30),
    limits=st.builds(Limits, st.integers(1, 4), st.integers(1, 6), st.integers(1, 60)),
)
def test_order_is_kept_and_no_limit_is_passed(sizes, limits):
    gauge, seen = Gauge(sizes), []
    for item in read_ahead(gauge.read, range(len(sizes)), lambda item: sizes[item], limits):
        gauge.take(item)
        seen.append(item)
    assert seen == list(range(len(sizes)))
    # One more: between the moment an item is taken here and the next is submitted there.
    assert gauge.most_items <= limits.items + 1
    largest = max(sizes, default=0)
    assert gauge.most_bytes <= max(limits.bytes, largest) + largest
    assert not reading_threads()


def test_reads_overlap():
    # All four must be under way at once, or none of them returns.
    together = threading.Barrier(4, timeout=10)

    def read(item):
        together.wait()
        return item

    assert list(read_ahead(read, range(8), limits=Limits(threads=4, items=4))) == list(range(8))


def test_a_slow_read_holds_its_place():
    def read(item):
        time.sleep(random.Random(item).random() / 50)
        return item

    assert list(read_ahead(read, range(40))) == list(range(40))


def test_items_are_not_asked_for_long_before_their_turn():
    asked = []

    def items():
        for item in range(50):
            asked.append(item)
            yield item

    for item in read_ahead(lambda item: item, items(), limits=Limits(items=5)):
        assert len(asked) <= item + 1 + 5


@pytest.mark.parametrize(
    "error", [FileNotFoundError("gone"), PermissionError("no"), OSError("reset")]
)
def test_an_error_keeps_its_class_and_its_turn_and_ends_the_threads(error):
    def read(item):
        if item == 3:
            raise error
        return item

    contents, taken = read_ahead(read, range(100)), []
    with pytest.raises(type(error), match=str(error)):
        taken.extend(iter(contents.__next__, None))
    assert taken == [0, 1, 2]
    assert not reading_threads()


def test_closing_early_reads_nothing_more_and_ends_the_threads():
    begun = []

    def read(item):
        begun.append(item)
        time.sleep(0.1 if item else 0)

    contents = read_ahead(read, range(1000), limits=Limits(threads=2, items=10))
    next(contents)
    contents.close()
    assert not reading_threads()
    assert len(begun) < 10  # those under way; the others of the ten that wait are given up


def test_an_item_larger_than_the_limit_is_read_alone():
    waiting = threading.Semaphore(0)
    started = []

    def read(item):
        started.append(item)
        waiting.release()
        return item

    contents = read_ahead(read, [1, 100, 1], lambda item: item, Limits(bytes=10))
    assert next(contents) == 1
    assert started == [1]
    assert list(contents) == [100, 1]


@pytest.mark.parametrize("name", ["threads", "items", "bytes"])
def test_a_limit_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be 1 or more"):
        Limits(**{name: 0})
