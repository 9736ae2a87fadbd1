"""What is left out, and why: one row a picture, and the budget for all of them.

Three kinds of trouble are told apart. *Missing*: annotated, but there is no file; known at listing.
*Bad*: the file will never be a picture (`BadImageError`); it costs a row. *Transient*: reading
failed (`OSError`); it is raised, so that the runner retries, and never becomes a row.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.spool import Rows, Sorter

MISSING = "missing"


class BadImageError(ValueError):
    """A picture that no retry will mend.

    Attributes:
        reason: a short stable word to count by, such as `truncated`.
        detail: one line for a person, with the offending value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both as args, so that it survives pickling
        self.reason = reason
        self.detail = detail


class TooManyRejectsError(RuntimeError):
    """More pictures were missing or bad than the user allows."""


@dataclasses.dataclass(frozen=True, order=True)
class Reject:
    """A picture left out. Ordered by id.

    Attributes:
        id: id of the picture.
        path: path relative to the data folder.
        reason: `missing`, or the `reason` of a `BadImageError`.
        detail: one line for a person.
    """

    id: str
    path: str
    reason: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Returns the row of `rejects.jsonl`."""
        return dataclasses.asdict(self)


def to_jsonl(rejects: Iterable[Reject]) -> Iterator[str]:
    """Yields the lines of `rejects.jsonl`: one JSON object each, in the order given."""
    return (json.dumps(reject.to_json(), ensure_ascii=False) + "\n" for reject in rejects)


def sort(rejects: Iterable[Reject]) -> Rows[Reject]:
    """Returns the rejects sorted by id, on disk."""
    sorter = Sorter(columns=4, by=4)
    sorter.extend((reject.id, reject.path, reject.reason, reject.detail) for reject in rejects)
    return sorter.sorted(Reject)


def check_budget(rejected: int, total: int, max_fraction: float, where: str) -> None:
    """Raises if too many pictures were left out.

    Args:
        rejected: pictures missing or bad.
        total: pictures annotated or found, the rejected ones included.
        max_fraction: largest accepted `rejected / total`.
        where: where to read about them, for the message.

    Raises:
        TooManyRejectsError: if `rejected` is more than `max_fraction` of `total`.
    """
    # Not rejected > max_fraction * total: 0.29 * 100 is less than 29.
    if rejected and rejected / total > max_fraction:
        raise TooManyRejectsError(
            f"{rejected:,} of {total:,} pictures ({rejected / total:.1%}) are missing or bad; "
            f"--max_reject_fraction={max_fraction} allows {max_fraction:.1%}. {where}"
        )
