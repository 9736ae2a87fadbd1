"""Rasters decoded at a fraction of their size, against the full decode; the rest: `test_images`."""

import functools

import numpy as np
import pytest
from PIL import Image

from pipeline import images
from pipeline.config import PictureOptions
from pipeline.images import prepare
from tests.pipeline.test_images import encode, exif_block


@functools.cache
def photo(width, height, seed=0, mode="RGB"):
    """Detail of all sizes down to some pixels, as in a photograph, without symmetry."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (4, 20, 100):
        small = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(large) / 3
    return Image.fromarray(total.astype(np.uint8)).convert(mode)


def psnr(a, b):
    error = np.square(a.astype(float) - b).mean()
    return 10 * np.log10(255**2 / error) if error else np.inf


def both_ways(data, box=None, **options):
    full, scaled = (
        prepare(data, box, PictureOptions(image_size=64, decode=way, **options))
        for way in ("full", "scaled")
    )
    assert scaled.bbox == full.bbox
    assert scaled.source_size == full.source_size
    return full, scaled


BOX = (151, 83, 960, 790)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(
    ("crop", "margin", "fit"),
    [
        ("none", 0.0, "stretch"),
        ("none", 0.0, "pad"),
        ("none", 0.0, "center_crop"),
        ("box", 0.0, "stretch"),
        ("box", 0.1, "pad"),
        ("box", 0.07, "center_crop"),
    ],
)
@pytest.mark.parametrize("size", [(1000, 800), (1003, 801)])  # ends with a whole block, or not
def test_a_scaled_picture_is_the_full_one_wherever_it_is_cut_and_turned(
    size, crop, margin, fit, orientation
):
    data = encode(photo(*size), "JPEG", quality=92, exif=exif_block(orientation))
    full, scaled = both_ways(data, BOX, crop=crop, crop_margin=margin, fit=fit)
    assert scaled.content_hash != full.content_hash  # it was decoded at another size
    assert psnr(scaled.rgb, full.rgb) > 47


@pytest.mark.parametrize(
    ("mode", "save"),
    [("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0})],
)
def test_every_kind_of_jpeg_is_scaled(mode, save):
    data = encode(photo(1000, 800, mode=mode), "JPEG", quality=92, **save)
    full, scaled = both_ways(data)
    assert scaled.content_hash != full.content_hash
    assert psnr(scaled.rgb, full.rgb) > 47


@pytest.mark.parametrize(
    ("size", "target", "scale"),
    [
        ((383, 900), 64, 1),
        ((384, 900), 64, 2),
        ((767, 900), 64, 2),
        ((768, 900), 64, 4),
        ((1535, 1600), 64, 4),
        ((1536, 1600), 64, 8),
        ((4000, 6000), 64, 8),
        ((1536, 1600), 0, 1),
    ],
)
def test_the_decoded_side_is_three_times_the_target_at_least(size, target, scale):
    options = PictureOptions(image_size=target, decode="scaled", encoding="png")
    assert images._scale(size, None, options) == scale
    assert images._scale(size[::-1], None, options) == scale


def test_the_scale_follows_what_is_cut_out():
    options = PictureOptions(image_size=64, decode="scaled", crop="box")
    assert images._scale((4000, 4000), (1, 1, 383, 3000), options) == 1
    assert images._scale((4000, 4000), (1, 1, 384, 3000), options) == 2
    assert images._scale((4000, 4000), None, options) == 8


@pytest.mark.parametrize(
    "data",
    [
        encode(photo(300, 200), "JPEG"),
        encode(photo(1000, 800)),
        encode(photo(1000, 800), "WEBP", lossless=True),
    ],
    ids=["small", "png", "webp"],
)
def test_what_is_not_scaled_is_exactly_the_same(data):
    full, scaled = both_ways(data)
    np.testing.assert_array_equal(scaled.rgb, full.rgb)
    assert scaled.content_hash == full.content_hash


def test_what_is_bad_is_bad_when_scaled():
    data = encode(photo(1000, 800), "JPEG")
    with pytest.raises(images.BadImageError, match="truncated"):
        prepare(data[: len(data) // 2], None, PictureOptions(image_size=64, decode="scaled"))
    with pytest.raises(images.BadImageError, match="bad_box"):
        prepare(data, (2000, 1, 2100, 5), PictureOptions(image_size=64, decode="scaled"))
