"""Rows sorted on disk, for all that grows with the number of pictures.

SQLite's sorter spills to temporary files and merges them, so memory is bounded whatever the number
of rows. The files have no name, lie where `SQLITE_TMPDIR` or `TMPDIR` says, and go away with the
process, even when it is killed. About three times the size of the rows is needed there at the peak.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

CACHE_KIB = 32 * 1024

Value = str | bytes | int | float | None
T = TypeVar("T")


class _Database(sqlite3.Connection):
    """A nameless database that is closed when nothing refers to it any more."""

    def __del__(self) -> None:
        self.close()


class Sorter:
    """Takes rows in any order; see the module's docstring.

    Args:
        columns: values a row. Strings are compared by code point.
        by: how many of them, from the first, decide the order.
    """

    def __init__(self, columns: int, by: int) -> None:
        # Made here, read wherever the rows go; one thread at a time.
        self._database = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False, factory=_Database
        )
        for pragma in ("journal_mode=OFF", "temp_store=FILE", f"cache_size=-{CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        names = [f"c{i}" for i in range(columns)]
        self._database.execute(f"CREATE TABLE given ({', '.join(names)})")
        self._insert = f"INSERT INTO given VALUES ({', '.join('?' * columns)})"
        self._order = ", ".join(names[:by])
        self._database.execute("BEGIN")

    def extend(self, rows: Iterable[tuple[Value, ...]]) -> None:
        """Takes rows, one at a time."""
        self._database.executemany(self._insert, rows)

    def sorted(self, make: Callable[..., T]) -> "Rows[T]":
        """Sorts what was taken; the sorter takes no more.

        Args:
            make: makes a row of its values, each time that it is read.
        """
        self._database.execute(f"CREATE TABLE row AS SELECT * FROM given ORDER BY {self._order}")
        self._database.execute("DROP TABLE given")
        [count] = self._database.execute("SELECT COUNT(*) FROM row").fetchone()
        return Rows(self._database, make, 0, count)


class Rows(Sequence[T], Generic[T]):
    """Sorted rows, or a part of them, that may be read any number of times."""

    def __init__(
        self, database: sqlite3.Connection, make: Callable[..., T], start: int, stop: int
    ) -> None:
        self._database, self._make = database, make
        self._start, self._stop = start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[T]:
        rows = self._database.execute(
            "SELECT * FROM row WHERE rowid > ? AND rowid <= ? ORDER BY rowid",
            (self._start, self._stop),
        )
        return itertools.starmap(self._make, rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                first = self._start + start
                return Rows(self._database, self._make, first, max(first, self._start + stop))
            return [self[i] for i in range(start, stop, step)]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return next(iter(self[index % len(self) : index % len(self) + 1]))

    def groups(self, columns: int) -> dict[tuple[Any, ...], "Rows[T]"]:
        """Returns the rows by their values in the first `columns`, which must lead the order."""
        names = ", ".join(f"c{i}" for i in range(columns))
        found = self._database.execute(
            f"SELECT {names}, MIN(rowid), COUNT(*) FROM row WHERE rowid > ? AND rowid <= ? "
            f"GROUP BY {names}",
            (self._start, self._stop),
        )
        return {
            tuple(key): Rows(self._database, self._make, first - 1, first - 1 + count)
            for *key, first, count in found
        }
