"""`pipeline.statistics` against sums done the long way."""

import json
import math
import time

import numpy as np
import pytest

from pipeline.statistics import AREA_BIN, SIDE_BIN, Statistics, of_picture


def random_picture(seed, side=32):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(80, 2000, 2)
    prepared = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    palette = rng.integers(0, 256, (rng.integers(1, 33), 3), dtype=np.uint8)
    stored = palette[rng.integers(0, len(palette), (side, side))]
    if seed % 5 == 0:
        prepared = stored.copy()
    return {
        "label": int(rng.integers(0, 4)),
        "source_bytes": int(rng.integers(1000, 100_000)),
        "source_size": (int(height), int(width)),
        "prepared": prepared,
        "stored": stored if seed % 7 else None,
    }


def total(statistics):
    result = Statistics()
    for one in statistics:
        result = result + one
    return result


def test_every_field_against_sums_done_the_long_way():
    pictures = [random_picture(seed) for seed in range(60)]
    got = total(of_picture(**picture) for picture in pictures)
    errors, values, exact, colors = 0, 0, 0, {}
    for picture in pictures:
        prepared, stored = picture["prepared"], picture["stored"]
        error = 0
        if stored is not None:
            error = sum(
                (int(a) - int(b)) ** 2
                for a, b in zip(prepared.ravel(), stored.ravel(), strict=True)
            )
            used = len({tuple(pixel) for pixel in stored.reshape(-1, 3).tolist()})
            colors[used] = colors.get(used, 0) + 1
        errors += error
        values += prepared.size if error else 0
        exact += error == 0

    def histogram(numbers):
        numbers = list(numbers)
        return {number: numbers.count(number) for number in numbers}

    heights, widths = zip(*(picture["source_size"] for picture in pictures), strict=True)
    areas = [height * width for height, width in zip(heights, widths, strict=True)]
    assert 5 < exact < 30
    assert got == Statistics(
        pictures=60,
        source_bytes=sum(picture["source_bytes"] for picture in pictures),
        source_pixels=sum(areas),
        stored_pixels=60 * 32 * 32,
        exact=exact,
        squared_error=errors,
        error_values=values,
        labels=histogram(picture["label"] for picture in pictures),
        source_widths=histogram(width - width % SIDE_BIN for width in widths),
        source_heights=histogram(height - height % SIDE_BIN for height in heights),
        source_areas=histogram(area - area % AREA_BIN for area in areas),
        colors=colors,
    )


def test_merging_in_any_order_and_grouping_gives_the_same_json():
    ones = [of_picture(**random_picture(seed)) for seed in range(20)]
    want = json.dumps(total(ones).to_json())
    rng = np.random.default_rng(0)
    for _ in range(5):
        mixed = [ones[i] for i in rng.permutation(20)]
        cut = int(rng.integers(1, 19))
        assert json.dumps((total(mixed[:cut]) + total(mixed[cut:])).to_json()) == want


def test_json_round_trip_is_exact():
    before = total(of_picture(**random_picture(seed)) for seed in range(20))
    assert Statistics.from_json(json.loads(json.dumps(before.to_json()))) == before
    assert Statistics.from_json(Statistics().to_json()) == Statistics()
    with pytest.raises(TypeError, match="surprise"):
        Statistics.from_json({"surprise": 1})


def test_psnr_is_of_the_mean_squared_error_without_exact_pictures():
    zeros = np.zeros((10, 20, 3), np.uint8)
    facts = {"label": 0, "source_bytes": 1, "source_size": (10, 20), "prepared": zeros}
    off_by_one = of_picture(**facts, stored=zeros + 1)
    off_by_nine = of_picture(**facts, stored=zeros + 9)
    exact = of_picture(**facts, stored=zeros)
    assert off_by_one.psnr() == pytest.approx(20 * math.log10(255))
    both = (off_by_one + off_by_nine).psnr()
    assert both == pytest.approx(10 * math.log10(255**2 / ((1 + 81) / 2)))
    assert (off_by_one + off_by_nine + exact).psnr() == both
    assert exact.psnr() is None
    assert Statistics().psnr() is None


def test_the_largest_error_does_not_overflow():
    black = np.zeros((300, 300, 3), np.uint8)
    got = of_picture(
        label=0, source_bytes=1, source_size=(9, 9), prepared=black, stored=black + 255
    )
    assert got.squared_error == 270_000 * 255**2
    assert got.psnr() == pytest.approx(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pictures": 1},
        {"labels": {3: 1}},
        {"exact": 1},
        {"squared_error": 5},
        {"error_values": 5},
        {"squared_error": -5, "error_values": 3},
    ],
)
def test_sums_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ValueError, match="pictures|values"):
        Statistics(**wrong)


def test_shapes_must_agree():
    picture = random_picture(1) | {"stored": np.zeros((1, 1, 3), np.uint8)}
    with pytest.raises(ValueError, match="shape"):
        of_picture(**picture)


def test_a_picture_costs_little():
    picture = random_picture(1, side=256)
    of_picture(**picture)
    spent = []
    for _ in range(20):
        start = time.perf_counter()
        of_picture(**picture)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 5e-3  # 0.7 ms measured; the rest is for slow machines
