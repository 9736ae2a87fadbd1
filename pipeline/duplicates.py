"""Pictures with equal pixels, found by sorting their hashes on disk.

Many copies of one picture, or many pairs, must not fill the memory of the last step or the report:
beyond the limits here pictures are counted and no longer named.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Container, Iterable, Iterator

from pipeline.spool import Rows

MAX_GROUPS = 10_000
MAX_PICTURES_PER_GROUP = 1_000

Content = tuple[str, str, int]  # hash of the pixels, id, label


@dataclasses.dataclass(frozen=True)
class EqualPictures:
    """Groups of pictures with equal pixels.

    Attributes:
        groups: labels by id, for each group, sorted.
        pictures: in all groups.
        in_all: number of groups.
        labels_differ: groups with more than one label.
        splits_differ: groups with pictures of more than one split.
        complete: whether `groups` has every group with every picture.
    """

    groups: tuple[dict[str, int], ...] = ()
    pictures: int = 0
    in_all: int = 0
    labels_differ: int = 0
    splits_differ: int = 0
    complete: bool = True


def split_of(id: str, splits: Container[str]) -> str | None:
    """Returns the split that an id begins with, as the ids of most layouts do, or None."""
    split = id.split("/")[0]
    return split if split in splits else None


@dataclasses.dataclass(frozen=True)
class _Group:
    named: dict[str, int]  # labels by id
    pictures: int
    labels: int
    splits: int


def find(contents: Rows[Content], splits: Container[str]) -> EqualPictures:
    """Returns the groups of pictures with equal pixels.

    Args:
        contents: of all pictures, sorted by hash and id.
        splits: names of the splits.
    """
    pictures = in_all = labels_differ = splits_differ = 0

    def groups() -> Iterator[dict[str, int]]:
        nonlocal pictures, in_all, labels_differ, splits_differ
        for _, equal in itertools.groupby(contents, key=lambda content: content[0]):
            group = _group(equal, splits)
            if group.pictures > 1:
                pictures += group.pictures
                in_all += 1
                labels_differ += group.labels > 1
                splits_differ += group.splits > 1
                yield group.named

    first = heapq.nsmallest(MAX_GROUPS, groups(), key=lambda group: next(iter(group)))
    named = sum(map(len, first))
    return EqualPictures(
        tuple(first), pictures, in_all, labels_differ, splits_differ, complete=named == pictures
    )


def _group(equal: Iterable[Content], splits: Container[str]) -> _Group:
    named: dict[str, int] = {}
    pictures = 0
    labels: set[int] = set()
    touched: set[str] = set()
    for _, id, label in equal:
        pictures += 1
        split = split_of(id, splits)
        # What makes a group harmful, a second label or a second split, is named in any case.
        if (
            len(named) < MAX_PICTURES_PER_GROUP
            or (len(labels) == 1 and label not in labels)
            or (len(touched) == 1 and split and split not in touched)
        ):
            named[id] = label
        labels.add(label)
        touched |= {split} if split else set()
    return _Group(named, pictures, len(labels), len(touched))
