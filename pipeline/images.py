"""A picture file to RGB: decode, crop, orient, resize. Pure: bytes in, an array out.

The order is fixed, because an annotated box refers to the raster as stored:
decode -> crop to the box -> apply the EXIF orientation to picture and box alike -> fit.

Choices that decide pixels:

*   Resampling is Pillow's Lanczos filter with its support stretched when shrinking (antialiased),
    in one step (`reducing_gap=None`), so that no pre-shrinking depends on the factor.
*   Transparent pixels are laid over white. Embedded colour profiles are ignored, as TensorFlow's
    decoders do; CMYK and YCCK follow Adobe's inverted convention (as Pillow and browsers assume)
    and become RGB by R = (255 - C)(255 - K) / 255.
*   16-bit samples keep their high byte. The first frame of an animation is the picture.

Pillow is handed only the parts of a file that make pixels. Metadata is where it warns or raises
about files whose pixels are sound (a corrupt EXIF block, an odd multi-picture index, text that
inflates beyond a limit), and `warnings.catch_warnings` is not safe with threads (CPython #128384);
without metadata there is nothing to warn about. The one tag that matters, the orientation, is read
here.
"""

import dataclasses
import hashlib
import io
import itertools
import struct
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from pipeline.config import Fit, PictureOptions
from pipeline.rejects import BadImageError

# Pillow's own threshold for a warning; 256 MiB of RGB. Larger is refused before any is allocated.
MAX_PIXELS = 1024**3 // 12

HASHED_BANDS = 16

_EXIF_HEADER = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112

# EXIF 2.3, tag Orientation: what to do to the stored raster to see it upright.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_KNOWN_BUT_UNSUPPORTED = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
)

_Rect = tuple[float, float, float, float]  # left, top, right, bottom; pixel edges from 0


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture, ready to be quantized.

    Attributes:
        rgb: uint8 (height, width, 3), C-contiguous, after crop, orientation and fit.
        bbox: the annotated box in `rgb`, TFDS order (ymin, xmin, ymax, xmax), in [0, 1];
            (0, 0, 1, 1) without one. `center_crop` can leave it without area.
        source_size: (height, width) of the raster as stored.
        content_hash: 32 hexadecimal digits; equal for files that decode to equal rasters.
    """

    rgb: NDArray[np.uint8]
    bbox: tuple[float, float, float, float]
    source_size: tuple[int, int]
    content_hash: str


def prepare(data: bytes, box: tuple[int, int, int, int] | None, options: PictureOptions) -> Picture:
    """Decodes, crops, orients and fits one picture.

    Args:
        data: a JPEG, PNG or WebP file.
        box: (x1, y1, x2, y2) in pixels of the stored raster, 1-based, ends included. What lies
            outside the raster is cut off. None: the whole picture, which then is never cropped.
        options: what to do; `colors`, `quantizer` and `encoding` are not looked at.

    Returns:
        The picture. With `image_size=0` it keeps its size, and `fit` has nothing to do.

    Raises:
        BadImageError: if no retry will make a picture of it. The reasons: `empty`,
            `not_an_image`, `unsupported`, `truncated`, `corrupt`, `too_large`, `bad_box`.
    """
    image, orientation = _decode(data)
    width, height = image.size
    content_hash = _content_hash(image)
    rect: _Rect = (0, 0, width, height) if box is None else _clip(box, image.size)
    if options.crop == "box" and box is not None:
        cut = _with_margin(rect, options.crop_margin, image.size)
        image = image.crop(cut)
        rect = _shift(rect, -cut[0], -cut[1])
    if orientation in _TRANSPOSE:
        rect = _transpose_rect(rect, image.size, orientation)
        image = image.transpose(_TRANSPOSE[orientation])
    if options.image_size:
        image, rect = _FITS[options.fit](image, rect, options.image_size)
    return Picture(
        rgb=np.array(image),
        bbox=_normalise(rect, image.size),
        source_size=(height, width),
        content_hash=content_hash,
    )


# --- decoding


def _decode(data: bytes) -> tuple[Image.Image, int]:
    """Returns the stored raster as an RGB image, and the EXIF orientation (1 if there is none)."""
    if not data:
        raise BadImageError("empty", "the file has no bytes")
    if data.startswith(b"\xff\xd8\xff"):
        pixels, exif = _split_jpeg(data)
        image = _load(JpegImagePlugin.JpegImageFile, pixels, "JPEG")
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        pixels, exif = _split_png(data)
        image = _load(PngImagePlugin.PngImageFile, pixels, "PNG")
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_webp(data)
        image = _load(WebPImagePlugin.WebPImageFile, data, "WebP")  # leaves its EXIF unparsed
        exif = image.info.get("exif", b"")
    else:
        raise _unrecognised(data)
    return _to_rgb(image), _orientation(exif)


def _unrecognised(data: bytes) -> BadImageError:
    formats = [name for prefix, name in _KNOWN_BUT_UNSUPPORTED if data.startswith(prefix)]
    if data[4:8] == b"ftyp":
        formats.append(f"ISO media ({data[8:12].decode('ascii', 'replace')})")
    if formats:
        return BadImageError("unsupported", f"a {formats[0]} file; JPEG, PNG and WebP are read")
    return BadImageError("not_an_image", f"begins with {data[:12]!r}: no JPEG, PNG or WebP file")


def _load(
    plugin: Callable[[io.BytesIO], ImageFile.ImageFile], data: bytes, name: str
) -> ImageFile.ImageFile:
    """Decodes with one named plugin of Pillow; all its complaints are about `data`."""
    try:
        image = plugin(io.BytesIO(data))
        _check_size(*image.size)
        image.load()
    except BadImageError:
        raise
    # The data are in memory, so an OSError is the decoder's, never the file system's.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise BadImageError(reason, f"{name}: {error}") from error
    return image


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadImageError("corrupt", f"{width}×{height} pixels")
    if width * height > MAX_PIXELS:
        raise BadImageError(
            "too_large", f"{width}×{height} pixels; at most {MAX_PIXELS:,} are decoded"
        )


def _split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Returns a JPEG file without metadata, and its EXIF block (empty if it has none).

    Of the application segments only APP0 (JFIF) and APP14 (Adobe) tell how to decode.
    """
    pixels = bytearray(data[:2])
    exif = b""
    start = 2
    while True:
        start = data.find(b"\xff", start)
        if start < 0 or start + 4 > len(data):
            raise BadImageError("truncated", f"JPEG: the header ends after {len(data):,} bytes")
        marker = data[start + 1]
        if marker == 0xFF:  # padding
            start += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # junk, or a marker without length
            start += 2
            continue
        if marker == 0xD9:
            raise BadImageError("corrupt", "JPEG: ends before any pixel")
        if marker == 0xDA:  # start of scan: from here on there are pixels
            return bytes(pixels) + data[start:], exif
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if end > len(data):
            raise BadImageError("truncated", f"JPEG: the header ends after {len(data):,} bytes")
        segment = data[start:end]
        if marker == 0xE1 and segment[4:].startswith(_EXIF_HEADER):
            exif = exif or segment[4:]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _check_jpeg_frame(marker, segment)
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            pixels += segment
        start = max(end, start + 4)


def _check_jpeg_frame(marker: int, segment: bytes) -> None:
    """Refuses a frame header that baseline and progressive decoders do not know."""
    if len(segment) < 10:
        raise BadImageError("corrupt", f"JPEG: a frame header of {len(segment)} bytes")
    precision, components = segment[4], segment[9]
    if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
        raise BadImageError("unsupported", f"JPEG: coding process SOF{marker - 0xC0}")
    if precision != 8 or components not in (1, 3, 4):
        raise BadImageError("unsupported", f"JPEG: {components} channels of {precision} bits")


def _split_png(data: bytes) -> tuple[bytes, bytes]:
    """Returns a PNG file without metadata, and its EXIF block (empty if it has none)."""
    pixels = bytearray(data[:8])
    exif = b""
    bit_depth = 8
    for kind, chunk in _png_chunks(data):
        if kind == b"IHDR":
            if len(chunk) < 25:
                raise BadImageError("corrupt", f"PNG: an image header of {len(chunk)} bytes")
            bit_depth = chunk[16]
        if kind == b"eXIf":
            exif = chunk[8:-4]
        # A single transparent colour of 16 bits would be compared with samples of 8.
        if kind in (b"IHDR", b"PLTE", b"IDAT") or (kind == b"tRNS" and bit_depth != 16):
            pixels += chunk
    return bytes(pixels) + b"\0\0\0\0IEND\xaeB`\x82", exif


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (kind, the whole chunk with length and checksum) up to IEND."""
    start = 8
    while start + 12 <= len(data):
        kind = data[start + 4 : start + 8]
        if kind == b"IEND":
            return
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            raise BadImageError("truncated", f"PNG: ends in a chunk {kind!r}")
        yield kind, data[start:end]
        start = end
    raise BadImageError("truncated", "PNG: has no end (IEND)")


def _check_webp(data: bytes) -> None:
    promised = 8 + int.from_bytes(data[4:8], "little")
    if promised > len(data):
        raise BadImageError("truncated", f"WebP: {len(data):,} bytes of {promised:,}")


def _orientation(exif: bytes) -> int:
    """Returns the orientation tag of the first directory; 1 if it is absent or the block corrupt.

    Args:
        exif: a TIFF header and directories, with or without `Exif\\0\\0` before it.
    """
    tiff = exif.removeprefix(_EXIF_HEADER)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for i in range(entries):
            at = directory + 2 + 12 * i
            tag, kind, count = struct.unpack_from(order + "HHI", tiff, at)
            # The standard says SHORT; some programs write LONG.
            if tag == _ORIENTATION_TAG and count == 1 and kind in (3, 4):
                code = "H" if kind == 3 else "I"
                return struct.unpack_from(order + code, tiff, at + 8)[0]
    except struct.error:  # the block ends early
        return 1
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling (Pillow #3011).
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _content_hash(image: Image.Image) -> str:
    """Returns 32 hexadecimal digits that stand for an RGB image's shape and pixels.

    Of the CRC-32C of each of 16 bands: a sha256 of all pixels takes 1 ms of the 10 that a picture
    costs. Pictures that differ in two bands do not meet by chance; a change within a single band is
    missed once in 4 billion.
    """
    digest = hashlib.sha256(f"{image.height}×{image.width}×3:".encode())
    edges = [image.height * band // HASHED_BANDS for band in range(HASHED_BANDS + 1)]
    for top, bottom in itertools.pairwise(edges):
        # Each by itself also because tobytes() of a whole picture takes twice its size beside it.
        band = image.crop((0, top, image.width, bottom)).tobytes()
        digest.update(google_crc32c.value(band).to_bytes(4, "big"))
    return digest.hexdigest()[:32]


# --- geometry


def _clip(box: tuple[int, int, int, int], size: tuple[int, int]) -> _Rect:
    """Returns the part of a 1-based inclusive box inside a raster of (width, height)."""
    x1, y1, x2, y2 = box
    width, height = size
    left, top = max(x1 - 1, 0), max(y1 - 1, 0)
    right, bottom = min(x2, width), min(y2, height)
    if left >= right or top >= bottom:
        raise BadImageError(
            "bad_box", f"box {x1},{y1} to {x2},{y2} has no pixel of a {width}×{height} picture"
        )
    return left, top, right, bottom


def _with_margin(rect: _Rect, margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns whole pixels: `rect` with `margin` of its side on each side, inside the raster."""
    left, top, right, bottom = rect
    dx, dy = round(margin * (right - left)), round(margin * (bottom - top))
    return (
        max(int(left) - dx, 0),
        max(int(top) - dy, 0),
        min(int(right) + dx, size[0]),
        min(int(bottom) + dy, size[1]),
    )


def _shift(rect: _Rect, dx: float, dy: float) -> _Rect:
    return rect[0] + dx, rect[1] + dy, rect[2] + dx, rect[3] + dy


def _scale(rect: _Rect, sx: float, sy: float) -> _Rect:
    return rect[0] * sx, rect[1] * sy, rect[2] * sx, rect[3] * sy


def _transpose_rect(rect: _Rect, size: tuple[int, int], orientation: int) -> _Rect:
    """Returns where `rect` of a raster of (width, height) lies after EXIF orientation 2 to 8."""
    left, top, right, bottom = rect
    width, height = size
    if orientation in (2, 3, 7, 8):  # the stored x axis runs backwards
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):  # the stored y axis runs backwards
        top, bottom = height - bottom, height - top
    if orientation >= 5:  # the axes change places
        return top, left, bottom, right
    return left, top, right, bottom


def _normalise(rect: _Rect, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Returns `rect` as (ymin, xmin, ymax, xmax) in [0, 1] of a raster of (width, height)."""
    left, top, right, bottom = (
        min(max(edge / side, 0.0), 1.0) for edge, side in zip(rect, size * 2, strict=True)
    )
    return top, left, bottom, right


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=None)


def _stretch(image: Image.Image, rect: _Rect, side: int) -> tuple[Image.Image, _Rect]:
    scaled = _scale(rect, side / image.width, side / image.height)
    return _resize(image, side, side), scaled


def _pad(image: Image.Image, rect: _Rect, side: int) -> tuple[Image.Image, _Rect]:
    factor = side / max(image.size)
    width, height = (max(round(length * factor), 1) for length in image.size)
    dx, dy = (side - width) // 2, (side - height) // 2
    square = Image.new("RGB", (side, side))
    square.paste(_resize(image, width, height), (dx, dy))
    return square, _shift(_scale(rect, width / image.width, height / image.height), dx, dy)


def _center_crop(image: Image.Image, rect: _Rect, side: int) -> tuple[Image.Image, _Rect]:
    shorter = min(image.size)
    dx, dy = (image.width - shorter) // 2, (image.height - shorter) // 2
    square = image.crop((dx, dy, dx + shorter, dy + shorter))
    return _stretch(square, _shift(rect, -dx, -dy), side)


_FITS: dict[Fit, Callable[[Image.Image, _Rect, int], tuple[Image.Image, _Rect]]] = {
    "stretch": _stretch,
    "pad": _pad,
    "center_crop": _center_crop,
}
