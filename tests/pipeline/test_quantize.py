import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import histograms
from pipeline import kmeans_kernels as kernels
from pipeline.quantize import LUMA_WEIGHTS, METHODS, pad_palette, quantize, warm_up

DATA = Path(
    os.environ.get(
        "STANFORD_CARS_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)
OWN_METHODS = ["fast", "quality"]


def picture(height=60, width=80, seed=0):
    """A made-up photograph: smooth colour ramps, a flat sky, a shape and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(x * f + y * g) for f, g in rng.uniform(1, 9, (3, 2))]
    image = 128 + 70 * np.stack(waves, axis=-1)
    image[: height // 4] = (150, 190, 230)
    image[(x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05] += (60, -50, -50)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def genuine_pictures(count):
    files = sorted((DATA / "stanford_cars").glob("cars_*/*.jpg"))
    if not files:
        pytest.skip(f"no genuine Stanford Cars pictures in {DATA}")
    return [np.asarray(Image.open(f).convert("RGB")) for f in files[:: len(files) // count][:count]]


def mse(image, indices, palette):
    return float(((image.astype(int) - palette[indices]) ** 2).mean())


def read_only(pixels):
    """As `quantize` hands pixels to the kernels; another type would have to be compiled."""
    view = pixels.reshape(-1, 3)
    view.flags.writeable = False
    return view


def nearest_by_brute_force(pixels, centres):
    """Label of the nearest centre, the lowest at a tie, in integer quarters of a level."""
    fixed = np.rint(centres * kernels.SCALE).astype(np.int64)
    distances = ((kernels.SCALE * pixels[:, None].astype(np.int64) - fixed) ** 2).sum(axis=2)
    return distances.argmin(axis=1)


def check_promises(image, colors, indices, palette):
    assert indices.dtype == palette.dtype == np.uint8
    assert indices.shape == image.shape[:2]
    assert 1 <= len(palette) <= colors
    np.testing.assert_array_equal(np.unique(indices), np.arange(len(palette)))  # all in use
    luma = palette.astype(int) @ LUMA_WEIGHTS
    order = [(y, *map(int, c)) for y, c in zip(luma, palette, strict=True)]
    assert order == sorted(set(order))
    for j, colour in enumerate(palette):
        mean = image[indices == j].astype(int).mean(axis=0)
        # Two clusters may round to one colour, whose mean then still rounds to it.
        np.testing.assert_array_equal(np.floor(mean + 0.5), colour)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    low=st.integers(0, 255),
    span=st.integers(1, 256),
    colors=st.sampled_from([2, 3, 16, 31, 32, 33, 255, 256]),
    method=st.sampled_from(OWN_METHODS),
    seed=st.integers(0, 2**32 - 1),
)
def test_promises_hold_for_any_picture(height, width, low, span, colors, method, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(low, min(low + span, 256), (height, width, 3), np.uint8)
    before = image.copy()
    indices, palette = quantize(image, colors, method)
    np.testing.assert_array_equal(image, before)
    check_promises(image, colors, indices, palette)
    if len(np.unique(image.reshape(-1, 3), axis=0)) <= colors:
        np.testing.assert_array_equal(palette[indices], image)


GRAY_RAMP = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
OUTLIER = np.zeros((50, 50, 3), np.uint8)
OUTLIER[7, 9] = (255, 0, 0)
FLAT = np.full((300, 500, 3), 36, np.uint8)  # 74,967 pixels in one bin: it spills, sums 0,
FLAT[150:] = 167  # and again in another, whose sums of lower bits are as large as they can be
FLAT[:3, :11] = np.arange(33, dtype=np.uint8)[:, None].repeat(3, 1).reshape(3, 11, 3) * 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("image", "colors"),
    [
        (np.array([[[1, 2, 3]]], np.uint8), 2),  # one pixel
        (GRAY_RAMP, 256),
        (GRAY_RAMP, 32),
        (GRAY_RAMP, 2),
        (OUTLIER, 2),
        (OUTLIER, 32),
        (FLAT, 32),  # 33 colours of few pixels and two of many
        (FLAT, 35),
        (GRAY_RAMP.reshape(1, 256, 3), 33),
        (GRAY_RAMP.reshape(256, 1, 3), 255),
        (np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), 2),
    ],
)
def test_odd_pictures(image, colors, method):
    indices, palette = quantize(image, colors, method)
    check_promises(image, colors, indices, palette)
    distinct = len(np.unique(image.reshape(-1, 3), axis=0))
    if distinct <= colors:
        assert len(palette) == distinct
        np.testing.assert_array_equal(palette[indices], image)


def test_one_colour_too_many_merges_the_closest_two():
    image = np.arange(33, dtype=np.uint8)[None, :, None].repeat(3, axis=2) * 7
    image[0, 20] = image[0, 19] + 1
    indices, palette = quantize(image, 32)
    assert len(palette) == 32
    assert mse(image, indices, palette) == 1 / 33  # one of the two is off by one level


def test_palette_is_ordered_by_rec_601_luma_then_by_rgb():
    ordered = [
        (0, 9, 0),  # 5283 in thousandths, like the next
        (15, 0, 7),
        (0, 8, 27),  # 7774, like the next
        (26, 0, 0),
        (0, 0, 255),  # 29070
        (255, 0, 0),  # 76245
        (0, 130, 0),  # 76310
    ]
    image = np.array([ordered[::-1]], np.uint8)
    indices, palette = quantize(image)
    assert palette.tolist() == [list(colour) for colour in ordered]
    assert indices.tolist() == [[6, 5, 4, 3, 2, 1, 0]]


@pytest.mark.parametrize("method", OWN_METHODS)
def test_gray_ramp_is_cut_in_about_equal_steps(method):
    indices, palette = quantize(GRAY_RAMP, 32, method)
    equal = 5.5  # of 32 steps of 8 levels: offsets -3.5 to 3.5 about a mean that rounds up
    assert mse(GRAY_RAMP, indices, palette) <= 1.05 * equal


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("colors", [1, 2, 3, 32, 255, 256])
def test_each_pixel_goes_to_the_nearest_centre(colors, tie):
    rng = np.random.default_rng(colors)
    for pixels in (
        rng.integers(0, 256, (20_000, 3), np.uint8),
        picture(100, 200, seed=colors),
        GRAY_RAMP,
    ):
        centres = rng.integers(0, 1021, (colors, 3)) / 4.0
        if tie:
            centres[-1] = centres[0]  # equally near: the lower label wins
        pixels = read_only(pixels)
        keys, bins = histograms.histogram(pixels)
        labels, clusters = kernels.assign_pixels(pixels, keys, bins, centres)
        np.testing.assert_array_equal(labels, nearest_by_brute_force(pixels, centres))
        np.testing.assert_array_equal(clusters[:, 0], np.bincount(labels, minlength=colors))
        for channel in range(3):
            sums = np.bincount(labels, pixels[:, channel], minlength=colors)
            np.testing.assert_array_equal(clusters[:, 1 + channel], sums)


@pytest.mark.genuine
def test_each_pixel_of_a_genuine_picture_goes_to_the_nearest_centre():
    for image in genuine_pictures(4):
        pixels = read_only(image)
        keys, bins = histograms.histogram(pixels)
        coarse, parents = histograms.coarsen(keys, bins)
        centres = kernels.fit(coarse, bins, parents, 32, 64, np.array([4]), np.array([1]), 2)
        labels, _ = kernels.assign_pixels(pixels, keys, bins, centres)
        np.testing.assert_array_equal(labels, nearest_by_brute_force(pixels, centres))


def test_fit_ends_where_lloyd_by_brute_force_stands_still():
    none = np.array([], np.int64)
    for seed in range(3):
        colours, counts = np.unique(
            picture(60, 80, seed).reshape(-1, 3), axis=0, return_counts=True
        )
        moments = np.column_stack([counts, counts[:, None] * colours]).astype(float)
        parents = np.empty(0, np.uint32)
        centres = kernels.fit(moments, moments, parents, 16, 48, none, none, 400)
        labels = nearest_by_brute_force(colours, centres)
        weights = np.bincount(labels, counts, minlength=16)
        sums = [np.bincount(labels, counts * c, minlength=16) for c in colours.T]
        np.testing.assert_array_equal(centres, np.transpose(sums / weights))


def test_a_picture_of_33_million_pixels_is_fitted_like_the_tile_it_repeats():
    """Its sums of colours would overflow the kernels' packed moments if they were not reduced."""
    tile = picture(128, 128) // 2 + 128
    indices, palette = quantize(tile)
    many, same = quantize(np.tile(tile, (32, 64, 1)))
    np.testing.assert_array_equal(same, palette)
    np.testing.assert_array_equal(many, np.tile(indices, (32, 64)))


SPILLS = np.full((449, 3), 200, np.uint8)  # in bins of 64 (spilled, then empty), 128, 192 and
SPILLS[64:], SPILLS[192:], SPILLS[384:] = 103, (9, 10, 11), (200, 100, 3)  # 65 pixels


@pytest.mark.parametrize("pixels", [FLAT, SPILLS, picture(200, 200)])
def test_histograms_agree_with_numpy(pixels):
    pixels = read_only(pixels)
    key = (pixels >> 2).astype(int) @ [1 << 12, 1 << 6, 1]
    distinct, counts = np.unique(key, return_counts=True)
    keys, bins = histograms.histogram(pixels)
    np.testing.assert_array_equal(keys, distinct)
    np.testing.assert_array_equal(bins[:, 0], counts)
    for channel in range(3):
        sums = np.bincount(key, pixels[:, channel])[distinct]
        np.testing.assert_array_equal(bins[:, 1 + channel], sums)

    coarse, parents = histograms.coarsen(keys, bins)
    for field in range(4):
        np.testing.assert_array_equal(np.bincount(parents, bins[:, field]), coarse[:, field])
    wide = np.unique(pixels >> 3, axis=0, return_counts=True)
    rows = np.lexsort((coarse // coarse[:, :1])[:, :0:-1].T.astype(int) >> 3)
    np.testing.assert_array_equal((coarse[rows, 1:] // coarse[rows, :1]).astype(int) >> 3, wide[0])
    np.testing.assert_array_equal(coarse[rows, 0], wide[1])
    np.testing.assert_array_equal(coarse[:, 1:].sum(axis=0), pixels.sum(axis=0, dtype=int))

    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    moments = histograms.colour_moments(pixels, keys)
    rows = np.lexsort((moments[:, 1:] / moments[:, :1])[:, ::-1].T)
    np.testing.assert_array_equal(moments[rows, 1:] / moments[rows, :1], colours)
    np.testing.assert_array_equal(moments[rows, 0], counts)


@pytest.mark.parametrize("method", OWN_METHODS)
@pytest.mark.parametrize("contrast", [1, 12])  # at 12 some sixty bins hold all colours
def test_error_is_about_that_of_scikit_learn(method, contrast):
    for seed in range(3):
        image = picture(90, 120, seed=seed) // contrast
        ours = mse(image, *quantize(image, 32, method))
        assert ours <= 1.02 * mse(image, *quantize(image, 32, "sklearn"))


@pytest.mark.genuine
def test_error_on_genuine_pictures_is_below_scikit_learn():
    ratios = []
    for image in genuine_pictures(6):
        small = np.asarray(Image.fromarray(image).resize((128, 128)))
        theirs = mse(small, *quantize(small, 32, "sklearn"))
        ratios.append([mse(small, *quantize(small, 32, m)) / theirs for m in OWN_METHODS])
    fast, quality = np.mean(ratios, axis=0)
    assert fast < 1.0
    assert quality < 1.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[:, ::-1],
        lambda a: a[::2, 1::3],
        lambda a: np.asfortranarray(a),
        lambda a: a[..., ::-1],
        lambda a: a.transpose(1, 0, 2),
    ],
)
def test_strides_do_not_matter_and_read_only_input_is_taken(view, method):
    strided = view(picture())
    expected = quantize(strided.copy(order="C"), 8, method)
    strided.flags.writeable = False
    for got, want in zip(quantize(strided, 8, method), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_input_keeps_its_flags_and_bytes():
    image = picture()
    before = image.copy()
    quantize(image)
    assert image.flags.writeable
    np.testing.assert_array_equal(image, before)


def test_threads_do_not_disturb_one_another():
    images = [picture(seed=seed) for seed in range(8)]
    expected = [quantize(image) for image in images]
    got = [None] * len(images)

    def work(i):
        for _ in range(5):
            got[i] = quantize(images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(result[0], want[0])
        np.testing.assert_array_equal(result[1], want[1])


def digest(images):
    state = hashlib.sha256()
    for image in images:
        for colors, method in ((32, "fast"), (16, "quality")):
            for part in quantize(image, colors, method):
                state.update(part.tobytes())
    return state.hexdigest()


def digest_elsewhere(**environment):
    """The digest as another process computes it, of the same made-up pictures."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_quantize as t; "
        "print(t.digest([t.picture(seed=s) for s in range(3)]))"
    )
    return subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # No AVX, no FMA. One cache folder a CPU model, so that a second test run is quick.
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    ],
)
def test_another_process_and_another_cpu_give_the_same_bytes(environment):
    assert digest_elsewhere(**environment) == digest([picture(seed=s) for s in range(3)])


def test_works_where_no_cache_can_be_written(tmp_path):
    """numba refuses `cache=True` when made if it finds no folder to write in."""
    package = tmp_path / "pipeline"
    package.mkdir()
    for name in ("__init__", "compiled"):
        source = Path(sys.modules["pipeline.quantize"].__file__).with_name(f"{name}.py")
        (package / source.name).write_bytes(source.read_bytes())
    (package / "doubled.py").write_text(
        "from pipeline.compiled import entry\n@entry\ndef double(x):\n    return 2 * x\n"
    )
    script = (
        "from numba.core import caching as c; c.CacheImpl._locator_classes = []\n"
        "import pipeline.doubled as d; print(d.double(21))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "42", done.stderr


def test_a_light_import():
    """A Beam worker must not pay for what it does not use."""
    script = "import sys, pipeline.quantize; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["sklearn", "scipy.linalg", "matplotlib", "tensorflow", "jax", "threadpoolctl"]
    done = subprocess.run(
        [sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((4, 4, 3)),), "float64"),
        (([[1, 2, 3]],), "list"),
        ((np.zeros((4, 4), np.uint8),), r"\(4, 4\)"),
        ((np.zeros((4, 4, 4), np.uint8),), r"\(4, 4, 4\)"),
        ((np.zeros((0, 4, 3), np.uint8),), r"\(0, 4, 3\)"),
        ((picture(), 1), "colors is 1;"),
        ((picture(), 257), "colors is 257;"),
        ((picture(), 32.0), r"colors is 32\.0;"),
        ((picture(), 32, "median"), "'median'"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize(*arguments)


def test_padding_repeats_the_last_colour():
    palette = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    padded = pad_palette(palette, 4)
    np.testing.assert_array_equal(padded, palette[[0, 1, 1, 1]])
    np.testing.assert_array_equal(pad_palette(palette, 2), palette)


@pytest.mark.parametrize("rows", [0, 5])
def test_padding_refuses_what_does_not_fit(rows):
    with pytest.raises(ValueError, match=f"{rows} colours cannot be padded to 4"):
        pad_palette(np.zeros((rows, 3), np.uint8), 4)


def test_warm_up_compiles_every_kernel_once():
    warm_up()
    quantize(picture())
    quantize(picture(), 16, "quality")
    for kernel in (kernels.fit, kernels.assign_pixels, kernels.relabel, histograms.histogram):
        assert len(kernel.signatures) == 1
