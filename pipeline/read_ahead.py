"""Reading ahead: what will be needed next is fetched by threads while the caller works.

A read from an object store is a round trip of tens of milliseconds, in which a caller that waits
could convert several pictures. The order stays that of the items, and an error is raised when the
turn of its item comes, so nothing but time depends on the threads.
"""

import collections
import dataclasses
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Content = TypeVar("Content")


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far to read ahead; what is reached first stops it.

    Attributes:
        threads: reads under way at once.
        items: most items that are read or wait to be taken, the one taken last not counted.
        bytes: most bytes of them. A larger item is read when no other waits.

    Raises:
        ValueError: when made, if a limit is not positive.
    """

    # At 50 ms a read sixteen threads bring 300 pictures a second, more than a core converts.
    threads: int = 16
    items: int = 32
    bytes: int = 32 << 20

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")


DEFAULT_LIMITS = Limits()


def read_ahead(
    read: Callable[[Item], Content],
    items: Iterable[Item],
    size: Callable[[Item], int] = lambda _: 0,
    limits: Limits = DEFAULT_LIMITS,
) -> Generator[Content]:
    """Yields `read(item)` for each item in order, reading later ones meanwhile.

    Its threads have ended when it is exhausted, has raised or is closed.

    Args:
        read: called in threads; raises what it likes.
        items: what to read; taken no earlier than the limits allow.
        size: bytes that an item will take, where there can be many.
        limits: how far to read ahead.

    Raises:
        Exception: what `read` raised for an item, when its turn comes.
    """
    waiting: collections.deque[tuple[int, Future[Content]]] = collections.deque()
    waiting_bytes = 0
    pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="read-ahead")
    try:
        for item in items:
            item_bytes = size(item)
            while waiting and (
                len(waiting) >= limits.items or waiting_bytes + item_bytes > limits.bytes
            ):
                taken, future = waiting.popleft()
                waiting_bytes -= taken
                yield future.result()
                del future  # or the content would live until the next is taken
            waiting.append((item_bytes, pool.submit(read, item)))
            waiting_bytes += item_bytes
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)
