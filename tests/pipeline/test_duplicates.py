import pytest

from pipeline import duplicates
from pipeline.spool import Sorter

SPLITS = {"train": None, "test": None}


def find(contents):
    sorter = Sorter(columns=3, by=2)
    sorter.extend(contents)
    return duplicates.find(sorter.sorted(lambda *row: row), SPLITS)


def brute_force(contents):
    """Every group, by comparing each picture with each."""
    groups = {
        tuple(sorted((id, label) for other, id, label in contents if other == hash_))
        for hash_, _, _ in contents
    }
    return tuple(dict(group) for group in sorted(groups) if len(group) > 1)


CONTENTS = [
    *((f"h{i % 5}", f"train/{i:02d}", i % 2) for i in range(12)),
    ("h9", "train/98", 1),
    ("h9", "test/98", 1),
    ("ha", "000001", 1),
    ("ha", "000002", 1),
    ("alone", "train/99", 3),
]


def test_groups_are_those_of_comparing_each_with_each():
    found = find(CONTENTS)
    assert found.groups == brute_force(CONTENTS)
    assert (found.in_all, found.pictures) == (7, 16)
    assert (found.labels_differ, found.splits_differ) == (5, 1)
    assert found.complete


def test_none_are_found_where_there_is_none():
    assert find([("a", "1", 0), ("b", "2", 0)]) == duplicates.EqualPictures()
    assert find([]) == duplicates.EqualPictures()


def test_more_groups_than_are_named_are_counted(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_GROUPS", 2)
    found = find(CONTENTS)
    assert found.groups == brute_force(CONTENTS)[:2]
    assert (found.in_all, found.pictures, found.labels_differ) == (7, 16, 5)
    assert not found.complete


@pytest.mark.parametrize("id", ["train/80", "train/zz"])
def test_of_a_large_group_the_first_are_named_and_what_makes_it_harmful(monkeypatch, id):
    monkeypatch.setattr(duplicates, "MAX_PICTURES_PER_GROUP", 3)
    contents = [("h", f"test/{i:02d}", 1) for i in range(50)]
    found = find([*contents, ("h", "train/70", 1), ("h", id, 2)])
    assert found.groups == ({"test/00": 1, "test/01": 1, "test/02": 1, "train/70": 1, id: 2},)
    assert (found.pictures, found.labels_differ, found.splits_differ) == (52, 1, 1)
    assert not found.complete
