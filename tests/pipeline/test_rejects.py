import json
import pickle

import pytest

from pipeline.rejects import (
    BadImageError,
    Reject,
    TooManyRejectsError,
    check_budget,
    sort,
    to_jsonl,
)


@pytest.mark.parametrize(
    ("rejected", "total", "fraction", "accepted"),
    [
        (0, 10, 0.0, True),
        (1, 10, 0.0, False),
        (1, 10, 0.1, True),  # exactly the budget
        (2, 10, 0.1, False),
        (10, 10, 1.0, True),
        (0, 0, 0.0, True),
    ],
)
def test_budget(rejected, total, fraction, accepted):
    if accepted:
        check_budget(rejected, total, fraction, "here")
    else:
        with pytest.raises(TooManyRejectsError, match=f"{rejected} of {total} pictures.*here"):
            check_budget(rejected, total, fraction, "here")


def test_jsonl_is_sorted_by_id_and_keeps_every_letter():
    rows = [Reject("b", "ü/b.jpg", "empty", "0 bytes"), Reject("a", "a\n.jpg", "missing", "-")]
    lines = [json.loads(line) for line in to_jsonl(sort(rows))]
    assert [Reject(**line) for line in lines] == sorted(rows)
    assert [line["id"] for line in lines] == ["a", "b"]


def test_a_bad_image_error_crosses_process_borders():
    error = pickle.loads(pickle.dumps(BadImageError("truncated", "at byte 7")))
    assert (error.reason, error.detail) == ("truncated", "at byte 7")


def test_a_share_that_is_exactly_allowed_passes():
    for percent in range(101):  # 0.29 * 100 is less than 29
        check_budget(percent, 100, float(f"{percent / 100:.2f}"), "")
