"""`pipeline.images` against plain Pillow, naive conversions, and a rectangle found again."""

import collections
import concurrent.futures
import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from pipeline import images
from pipeline.config import PictureOptions
from pipeline.images import prepare
from pipeline.rejects import BadImageError

AS_STORED = PictureOptions(image_size=0, encoding="png")
DATA = Path(
    os.environ.get("STANFORD_CARS_DATA", Path(__file__).resolve().parents[2].parent / "shared/data")
)


def picture(width=64, height=48, mode="RGB"):
    """A smooth picture without symmetry, so that every orientation of it differs."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [x * 255 / width, y * 255 / height, (x * 2 + y) * 255 / (2 * width + height)]
    image = Image.fromarray(np.stack(channels, -1).astype(np.uint8))
    return image if mode == "RGB" else image.convert(mode)


def encode(image, format_="PNG", **save):
    out = io.BytesIO()
    image.save(out, format_, **save)
    return out.getvalue()


def exif_block(orientation, order="<", kind=3):
    code = {3: "H", 4: "I"}[kind]
    value = struct.pack(order + code, orientation).ljust(4, b"\0")
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return b"Exif\0\0" + head + struct.pack(order + "IH", 8, 1) + entry + struct.pack("I", 0)


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, stream, bits=8, colour_type=2, extra=()):
    """A PNG by hand, as Pillow would not write it."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", stream), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*c) for c in chunks)


def by_pillow(data):
    """The independent oracle: what plain Pillow makes of a file, upright, in RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def reason_of(data, box=None, options=AS_STORED):
    with pytest.raises(BadImageError) as caught:
        prepare(data, box, options)
    assert caught.value.detail
    assert "\n" not in caught.value.detail
    return caught.value.reason


# --- decoding


@pytest.mark.parametrize(
    "data",
    [
        encode(picture(), "JPEG", quality=90),
        encode(picture(), "JPEG", quality=90, progressive=True),
        encode(picture(), "JPEG", subsampling=0, restart_marker_blocks=2),
        encode(picture(mode="L"), "JPEG"),
        encode(picture(mode="CMYK"), "JPEG"),
        encode(picture(), "JPEG", keep_rgb=True),  # RGB without YCbCr: told by APP14 alone
        encode(picture(), "JPEG", icc_profile=b"no profile" * 9000, comment=b"hello", xmp=b"<x/>"),
        encode(picture()),
        encode(picture(mode="L")),
        encode(picture(mode="1")),
        encode(picture().quantize(20)),
        encode(picture().quantize(3)),  # two bits a pixel
        encode(picture(), "WEBP", quality=80),
        encode(picture(), "WEBP", lossless=True),
        encode(picture(1, 1)),
        encode(picture(), "JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb"),  # padded markers
        encode(picture(), "JPEG") + b"what other programs leave behind the end",
    ],
)
def test_decodes_what_pillow_decodes(data):
    got = prepare(data, None, AS_STORED)
    np.testing.assert_array_equal(got.rgb, by_pillow(data))
    assert got.rgb.dtype == np.uint8
    assert got.rgb.flags.c_contiguous
    assert got.rgb.flags.writeable
    assert got.source_size == got.rgb.shape[:2]
    assert got.bbox == (0, 0, 1, 1)


def test_cmyk_jpeg_against_a_naive_conversion():
    image = picture(mode="CMYK")
    data = encode(image, "JPEG", quality=100, subsampling=0)
    c, m, y, k = np.moveaxis(np.asarray(image).astype(np.float64), -1, 0)
    want = np.stack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)], -1)
    assert np.abs(prepare(data, None, AS_STORED).rgb - want).max() < 6


def test_ycck_jpeg():
    """Pillow writes no YCCK, so its four channels are written as CMYK and then declared YCCK."""
    rgb = picture()
    # YCCK is YCbCr of the inks, 255 - RGB, beside K, which Adobe stores inverted.
    key = np.full((48, 64), 200, np.uint8)
    stored = np.dstack([np.asarray(ImageOps.invert(rgb).convert("YCbCr")), key])
    data = encode(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100, subsampling=0)
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data = data[:transform] + b"\x02" + data[transform + 1 :]
    got = prepare(data, None, AS_STORED).rgb
    np.testing.assert_array_equal(got, by_pillow(data))
    assert np.abs(got - np.asarray(rgb) * (200 / 255)).max() < 8


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_transparency_lies_over_white(mode, format_):
    image = picture(mode=mode)
    alpha = np.arange(64 * 48).reshape(48, 64) % 256
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    data = encode(image, format_, **({"lossless": True, "exact": True} if format_ != "PNG" else {}))
    share = (alpha / 255)[..., None]
    want = np.asarray(picture(mode=mode[:-1]).convert("RGB")) * share + 255 * (1 - share)
    assert np.abs(prepare(data, None, AS_STORED).rgb - want).max() <= 1


def test_transparent_palette_and_colour_key():
    indexed = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    opaque, clear = (40, 50, 60), (255, 255, 255)
    for transparency in (0, bytes([0, 255])):
        got = prepare(encode(indexed, transparency=transparency), None, AS_STORED)
        np.testing.assert_array_equal(got.rgb, [[clear, opaque], [opaque, clear]])
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    got = prepare(encode(keyed, transparency=(4, 5, 6)), None, AS_STORED)
    np.testing.assert_array_equal(got.rgb, [[(1, 2, 3), clear]])


@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (3, 2)])
@pytest.mark.parametrize("key", [False, True])
def test_16_bits_keep_their_high_byte(channels, colour_type, key):
    samples = np.random.default_rng(0).integers(0, 65536, (7, 9, channels))
    samples[0, 0], samples[0, 1] = (
        5,
        0x512,
    )  # a key of 5 must not hide a sample whose high byte is 5
    extra = [(b"tRNS", samples[0, 0].astype(">u2").tobytes())] if key else []
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    data = png(9, 7, zlib.compress(rows), 16, colour_type, extra)
    got = prepare(data, None, AS_STORED)
    np.testing.assert_array_equal(got.rgb, np.broadcast_to(samples >> 8, (7, 9, 3)))


def test_first_frame_of_an_animation():
    frames = [picture(), ImageOps.invert(picture())]
    for format_, save in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encode(frames[0], format_, save_all=True, append_images=frames[1:], **save)
        np.testing.assert_array_equal(prepare(data, None, AS_STORED).rgb, np.asarray(frames[0]))


# --- what cannot be a picture


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 Not Found</html>", "not_an_image"),
        (b"\x00" * 500, "not_an_image"),
        (encode(picture(), "GIF"), "unsupported"),
        (encode(picture(), "BMP"), "unsupported"),
        (encode(picture(), "TIFF"), "unsupported"),
        (encode(picture(), "AVIF"), "unsupported"),
        (encode(picture(), "JPEG").replace(b"\xc0\0\x11\x08", b"\xc0\0\x11\x0c"), "unsupported"),
        (encode(picture(), "JPEG").replace(b"\xff\xc0\0", b"\xff\xc3\0"), "unsupported"),
        (b"\xff\xd8\xff\xd9", "truncated"),
        (b"\xff\xd8\xff\xd9\0\0\0\0", "corrupt"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (encode(picture()).replace(b"IDAT", b"IDAX"), "corrupt"),
        (png(4, 4, b"no zlib stream"), "corrupt"),
        (png(4, 4, zlib.compress(b"")), "truncated"),
        (png(0, 4, b""), "corrupt"),
        (b"RIFF\x04\0\0\0WEBP", "corrupt"),
    ],
)  # fmt: skip
def test_reasons(data, reason):
    assert reason_of(data) == reason


@pytest.mark.parametrize("save", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_every_truncated_jpeg_is_rejected(save):
    data = encode(picture(), "JPEG", **save)
    for length in [*range(3, len(data) - 40, 37), *range(len(data) - 40, len(data) - 3)]:
        assert reason_of(data[:length]) == "truncated", length


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_every_truncated_png_and_webp_is_rejected(format_):
    data = encode(picture(), format_)
    for length in range(12, len(data), 29):
        assert reason_of(data[:length]) == "truncated", length


def test_too_large_is_refused_before_it_is_decoded():
    jpeg = bytearray(encode(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0\0\x11\x08") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    webp = bytearray(encode(picture(), "WEBP", save_all=True, append_images=[picture(mode="1")]))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (11_999).to_bytes(3, "little") * 2  # canvas width and height, less one
    assert reason_of(png(60_000, 60_000, zlib.compress(b""))) == "too_large"
    assert reason_of(bytes(jpeg)) == "too_large"
    assert reason_of(bytes(webp)) == "too_large"
    assert images.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("error", [OSError, SyntaxError, ValueError, EOFError, struct.error])
def test_whatever_pillow_raises_about_the_data_is_a_reject(monkeypatch, error):
    def load(self):
        raise error("no such luck")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    assert reason_of(encode(picture())) == "corrupt"


def test_other_errors_are_not_swallowed(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(MemoryError):
        prepare(encode(picture()), None, AS_STORED)


def test_damage_costs_a_reject_and_never_another_error_or_a_warning():
    sources = [
        encode(picture(), "JPEG", exif=exif_block(6)),
        encode(picture(), "JPEG", progressive=True, icc_profile=b"x" * 100),
        encode(picture(mode="CMYK"), "JPEG"),
        encode(picture().quantize(20), transparency=0, exif=exif_block(3)),
        encode(picture(), save_all=True, append_images=[picture(mode="L")]),
        encode(picture(mode="RGBA"), "WEBP", exif=exif_block(8)),
    ]
    rng = random.Random(0)
    reasons = collections.Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(1500):
            data = bytearray(rng.choice(sources))
            for _ in range(rng.choice([1, 1, 2, 8])):
                at = rng.randrange(3, min(len(data), rng.choice([60, 800, 10**6])))
                data[at] = rng.choice([0, 1, 0xFF, data[at] ^ 1 << rng.randrange(8)])
            try:
                prepare(bytes(data), None, AS_STORED)
            except BadImageError as error:
                reasons[error.reason] += 1
    assert set(reasons) == {"unsupported", "truncated", "corrupt", "not_an_image"}
    assert 100 < reasons.total() < 1400  # the damage was neither harmless nor total


def global_state():
    return list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES


def test_metadata_never_warns_and_filters_stay_untouched():
    plain = encode(picture(), "JPEG")
    noisy = [
        encode(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\x7f" + b"\x12\x01\x03\0" * 9),
        encode(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff"),
        plain[:2] + b"\xff\xe2\0\x0eMPF\0II*\0\x08\0\0\0" + plain[2:],
    ]
    with pytest.warns(UserWarning, match="Truncated File Read"), Image.open(io.BytesIO(noisy[0])):
        pass  # plain Pillow does warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = global_state()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda data: prepare(data, None, AS_STORED), noisy * 20))
        assert global_state() == before
    for got in results:
        np.testing.assert_array_equal(got.rgb, by_pillow(plain))


@pytest.mark.parametrize("height", [1, 15, 16, 100])
def test_content_hash_sees_every_pixel(height):
    pixels = np.zeros((height, 3, 3), np.uint8)
    hashes = {prepare(encode(Image.fromarray(pixels)), None, AS_STORED).content_hash}
    for row in range(height):
        pixels[row, row % 3, 1] = 1
        hashes.add(prepare(encode(Image.fromarray(pixels)), None, AS_STORED).content_hash)
    assert len(hashes) == height + 1


def test_content_hash_tells_pixels_and_nothing_else():
    image = picture()
    base = prepare(encode(image), None, AS_STORED).content_hash
    other_options = PictureOptions(image_size=16, fit="pad", crop="box")
    assert len(base) == 32
    assert prepare(encode(image, "WEBP", lossless=True), None, AS_STORED).content_hash == base
    assert prepare(encode(image), (3, 3, 9, 9), other_options).content_hash == base
    assert prepare(encode(image, exif=exif_block(6)), None, AS_STORED).content_hash == base
    reshaped = Image.frombytes("RGB", (48, 64), image.tobytes())
    assert prepare(encode(reshaped), None, AS_STORED).content_hash != base


# --- orientation


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_orientation_as_pillow_does_it(orientation, format_):
    data = encode(picture(), format_, exif=exif_block(orientation))
    got = prepare(data, None, AS_STORED)
    np.testing.assert_array_equal(got.rgb, by_pillow(data))
    assert got.source_size == (48, 64)
    assert (got.rgb.shape == (64, 48, 3)) == (5 <= orientation <= 8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_in_either_byte_order_and_any_integer_type(order, kind):
    data = encode(picture(), "JPEG", exif=exif_block(6, order, kind))
    np.testing.assert_array_equal(prepare(data, None, AS_STORED).rgb, by_pillow(data))


def test_the_first_of_two_exif_blocks_counts():
    data = encode(picture(), "JPEG", exif=exif_block(6))
    second = exif_block(3)
    at = data.index(b"\xff\xdb")
    data = data[:at] + b"\xff\xe1" + struct.pack(">H", len(second) + 2) + second + data[at:]
    np.testing.assert_array_equal(prepare(data, None, AS_STORED).rgb, by_pillow(data))


@pytest.mark.parametrize("length", range(26))
def test_a_cut_exif_block_is_no_orientation(length):
    exif = exif_block(6)[: 6 + length]
    got = prepare(encode(picture(), "JPEG", exif=exif), None, AS_STORED).rgb
    # The value ends with byte 20; before that there is nothing to read.
    assert got.shape == ((64, 48, 3) if length >= 20 else (48, 64, 3))


# --- boxes


@pytest.mark.parametrize(
    ("box", "bbox"),
    [
        ((1, 1, 64, 48), (0, 0, 1, 1)),
        ((17, 13, 32, 24), (0.25, 0.25, 0.5, 0.5)),
        ((1, 1, 1, 1), (0, 0, 1 / 48, 1 / 64)),  # one pixel has an area
        ((0, -1, 65, 49), (0, 0, 1, 1)),  # a pixel too large on every side: cut off
        ((33, 25, 640, 480), (0.5, 0.5, 1, 1)),
    ],
)
def test_bbox_of_one_based_inclusive_pixels(box, bbox):
    assert prepare(encode(picture()), box, AS_STORED).bbox == pytest.approx(bbox, abs=1e-12)


@pytest.mark.parametrize(
    "box", [(65, 1, 70, 48), (1, 49, 64, 60), (-5, 1, 0, 48), (20, 1, 10, 48), (1, 9, 64, 8)]
)
def test_box_without_a_pixel_inside_is_bad(box):
    for crop in ("none", "box"):
        assert reason_of(encode(picture()), box, PictureOptions(crop=crop)) == "bad_box"


def find_rectangle(rgb):
    """Returns (ymin, xmin, ymax, xmax) of the red rectangle, to half a pixel's cover."""
    red = rgb[..., 0].astype(float) - rgb[..., 1] > 127
    height, width = red.shape
    ys, xs = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    return ys[0] / height, xs[0] / width, (ys[-1] + 1) / height, (xs[-1] + 1) / width


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["stretch", "pad", "center_crop"])
@pytest.mark.parametrize("size", [0, 96, 250])
@pytest.mark.parametrize(
    ("crop", "margin"), [("none", 0.0), ("box", 0.0), ("box", 0.25), ("box", 1.0)]
)
def test_bbox_is_where_the_rectangle_went(orientation, fit, size, crop, margin):
    box = (61, 41, 130, 90)  # off the centre both ways, inside every centre crop's reach
    raster = np.full((150, 240, 3), 255, np.uint8)
    raster[40:90, 60:130] = (255, 0, 0)
    data = encode(Image.fromarray(raster), exif=exif_block(orientation))
    options = PictureOptions(
        crop=crop, crop_margin=margin, image_size=size, fit=fit, encoding="png"
    )
    got = prepare(data, box, options)
    tolerance = 1.01 / min(got.rgb.shape[:2]) if size else 1e-9
    assert got.bbox == pytest.approx(find_rectangle(got.rgb), abs=tolerance)
    if size:
        assert got.rgb.shape == (size, size, 3)


def test_box_refers_to_the_stored_raster():
    """As in train 07389 of the genuine set: the box fits only before the orientation is applied."""
    data = encode(picture(160, 40), exif=exif_block(6))
    options = PictureOptions(crop="box", image_size=0, encoding="png")
    got = prepare(data, (101, 11, 160, 40), options)
    want = np.rot90(np.asarray(picture(160, 40))[10:40, 100:160], -1)
    np.testing.assert_array_equal(got.rgb, want)
    assert got.bbox == (0, 0, 1, 1)


def test_crop_margin_is_a_share_of_the_box_and_stays_inside():
    options = PictureOptions(crop="box", crop_margin=0.5, image_size=0, encoding="png")
    got = prepare(encode(picture()), (51, 11, 60, 30), options)  # 10 × 20 pixels
    np.testing.assert_array_equal(got.rgb, np.asarray(picture())[0:40, 45:64])
    assert got.bbox == pytest.approx((10 / 40, 5 / 19, 30 / 40, 15 / 19))


def test_without_a_box_nothing_is_cropped():
    options = PictureOptions(crop="box", image_size=0, encoding="png")
    got = prepare(encode(picture()), None, options)
    np.testing.assert_array_equal(got.rgb, np.asarray(picture()))


# --- fitting


def test_stretch_is_lanczos():
    want = picture().resize((20, 20), Image.Resampling.LANCZOS)
    got = prepare(encode(picture()), None, PictureOptions(image_size=20)).rgb
    np.testing.assert_array_equal(got, np.asarray(want))


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (30, 30), (300, 7)])
def test_pad_centres_between_black_bars(size):
    got = prepare(encode(picture(*size)), None, PictureOptions(image_size=32, fit="pad")).rgb
    width, height = (max(round(side * 32 / max(size)), 1) for side in size)
    want = np.zeros((32, 32, 3), np.uint8)
    top, left = (32 - height) // 2, (32 - width) // 2
    resized = picture(*size).resize((width, height), Image.Resampling.LANCZOS)
    want[top : top + height, left : left + width] = resized
    np.testing.assert_array_equal(got, want)


def test_pad_keeps_at_least_one_pixel():
    got = prepare(encode(picture(1, 500)), (1, 1, 1, 500), PictureOptions(image_size=32, fit="pad"))
    assert got.rgb.any(-1).any(0).sum() == 1
    assert got.bbox == (0, 15 / 32, 1, 16 / 32)


def test_center_crop_keeps_the_middle():
    got = prepare(encode(picture()), None, PictureOptions(image_size=20, fit="center_crop"))
    want = picture().crop((8, 0, 56, 48)).resize((20, 20), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(got.rgb, np.asarray(want))


def test_a_picture_of_the_right_size_is_left_alone():
    for fit in ("stretch", "pad", "center_crop"):
        got = prepare(encode(picture(32, 32)), None, PictureOptions(image_size=32, fit=fit)).rgb
        np.testing.assert_array_equal(got, np.asarray(picture(32, 32)))


# --- the genuine files


@pytest.mark.genuine
def test_genuine_files_decode_as_pillow_does():
    folder = DATA / "stanford_cars"
    if not folder.is_dir():
        pytest.skip(f"no genuine files at {folder}")
    paths = sorted(folder.glob("cars_t*/*.jpg"))
    assert len(paths) >= 200
    for path in paths:
        data = path.read_bytes()
        got = prepare(data, None, AS_STORED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about corrupt EXIF
            np.testing.assert_array_equal(got.rgb, by_pillow(data), err_msg=path.name)
