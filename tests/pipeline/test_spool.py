import os
import random
import subprocess
import sys

import pytest

from pipeline.spool import Sorter


def rows_of(values, by=1, columns=2):
    sorter = Sorter(columns=columns, by=by)
    for start in range(0, len(values), 7):  # in several portions
        sorter.extend(values[start : start + 7])
    return sorter.sorted(lambda *row: row)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_rows_come_back_in_the_order_of_python_as_often_as_asked(count):
    names = [f"{chr(random.Random(i).randrange(32, 0xD000))}{i}" for i in range(count)]
    values = [(name, i) for i, name in enumerate(names)]
    rows = rows_of(values)
    assert list(rows) == list(rows) == sorted(values)
    assert len(rows) == count


def test_every_kind_of_value_comes_back_as_it_was():
    values = [("a\0b\u2028", None), ("é", 1.1), ("車", 2**62), ("😀", b"\xff\0"), ("", "")]
    assert set(rows_of(values)) == set(values)


def test_more_columns_decide_where_the_first_are_equal():
    values = [("b", 2), ("a", 10), ("a", 9), ("b", 1)]
    assert list(rows_of(values, by=2)) == [("a", 9), ("a", 10), ("b", 1), ("b", 2)]


def test_rows_are_a_sequence():
    rows = rows_of([(i, -i) for i in range(10)])
    plain = [(i, -i) for i in range(10)]
    assert rows[3] == (3, -3)
    assert rows[-1] == (9, -9)
    for part in (slice(2, 5), slice(5, 2), slice(None), slice(None, None, -1), slice(8, 99)):
        assert list(rows[part]) == plain[part]
    assert rows[2:8][1:3][0] == (3, -3)
    for outside in (10, -11):
        with pytest.raises(IndexError):
            rows[outside]


def test_two_readers_do_not_disturb_each_other():
    rows = rows_of([(i, 0) for i in range(1000)])
    assert all(one == two for one, two in zip(rows, rows, strict=True))


def test_groups_are_the_rows_of_equal_first_columns():
    values = [(f"s{i % 3}", i % 4, i) for i in range(60)]
    rows = rows_of(values, by=3, columns=3)
    for columns in (1, 2):
        groups = rows.groups(columns)
        assert groups.keys() == {value[:columns] for value in values}
        for key, group in groups.items():
            assert list(group) == sorted(value for value in values if value[:columns] == key)
    (inner,) = rows.groups(1)[("s1",)].groups(1).values()
    assert len(inner) == 20


SORT = """
import sys
from pipeline.spool import Sorter
count = int(sys.argv[1])
sorter = Sorter(columns=1, by=1)
sorter.extend((f"{i * 7919 % count:0200d}",) for i in range(count))
rows = sorter.sorted(str)
assert len(rows) == count and all(int(row) == i for i, row in enumerate(rows))
# Not getrusage, which counts the process that started this one.
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak.split()[1])
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="no /proc to read the peak from"
)
def test_many_rows_take_the_memory_of_the_cache_and_leave_no_file(tmp_path):
    # 150,000 rows of 200 characters are 30 MB, 600,000 are 120 MB.
    environment = {**os.environ, "SQLITE_TMPDIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", SORT, str(count)],
                env=environment,
                check=True,
                capture_output=True,
            ).stdout
        )
        for count in (150_000, 600_000)
    )
    assert many - few < 45_000  # kB
    assert os.listdir(tmp_path) == []
