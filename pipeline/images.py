"""A picture file to RGB: decode, crop, orient, resize. Pure: bytes in, an array out.

The order is fixed, because an annotated box refers to the raster as stored:
decode -> crop to the box -> apply the EXIF orientation to picture and box alike -> fit.

Choices that decide pixels:

*   Resampling is Pillow's Lanczos filter with its support stretched when shrinking (antialiased),
    in one step (`reducing_gap=None`), so that no pre-shrinking depends on the factor.
*   With `decode="scaled"` a JPEG far larger than the target is decoded at 1/2, 1/4 or 1/8 of its
    side; boxes and crops stay in pixels of the full picture.
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

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import struct
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from pipeline.config import PictureOptions
from pipeline.geometry import (
    FITS,
    TRANSPOSE,
    Box,
    Raster,
    Rect,
    clip,
    normalise,
    shift,
    transpose_rect,
    with_margin,
)
from pipeline.rejects import BadImageError

# Pillow's own threshold for a warning; 256 MiB of RGB. Larger is refused before any is allocated.
MAX_PIXELS = 1024**3 // 12

HASHED_BANDS = 16

# With `decode="scaled"` a JPEG still has so many times the target's side when it is decoded.
# Measured in docs/preprocessing.md: with a gap of 2 some pictures are off by a level and more.
SCALED_GAP = 3

_EXIF_HEADER = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112

_KNOWN_BUT_UNSUPPORTED = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
)


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
    raster, orientation = _decode(data, functools.partial(_scale, box=box, options=options))
    width, height = raster.size
    content_hash = _content_hash(raster.image)
    rect: Rect = (0, 0, width, height) if box is None else clip(box, raster.size)
    if options.crop == "box" and box is not None:
        cut = with_margin(rect, options.crop_margin, raster.size)
        raster = raster.crop(cut)
        rect = shift(rect, -cut[0], -cut[1])
    if orientation in TRANSPOSE:
        rect = transpose_rect(rect, raster.size, orientation)
        raster = raster.transpose(orientation)
    image = raster.image
    if options.image_size:
        image, rect = FITS[options.fit](raster, rect, options.image_size)
    return Picture(
        rgb=np.array(image),
        bbox=normalise(rect, image.size),
        source_size=(height, width),
        content_hash=content_hash,
    )


def _scale(size: tuple[int, int], box: Box | None, options: PictureOptions) -> int:
    """Returns by how much a JPEG of (width, height) is reduced while it is decoded: 1, 2, 4, 8."""
    if options.decode == "full" or not options.image_size:
        return 1
    if options.crop == "box" and box is not None:
        left, top, right, bottom = with_margin(clip(box, size), options.crop_margin, size)
        size = right - left, bottom - top
    sides = [min(size) // (SCALED_GAP * options.image_size * scale) for scale in (8, 4, 2)]
    return next((scale for scale, fits in zip((8, 4, 2), sides, strict=True) if fits), 1)


# --- decoding


def _decode(data: bytes, scale: Callable[[tuple[int, int]], int]) -> tuple[Raster, int]:
    """Returns the stored raster in RGB, and the EXIF orientation (1 if there is none).

    Args:
        data: the file.
        scale: by how much a JPEG of (width, height) may be reduced while it is decoded.
    """
    reduction = 1
    if not data:
        raise BadImageError("empty", "the file has no bytes")
    if data.startswith(b"\xff\xd8\xff"):
        pixels, exif = _split_jpeg(data)
        jpeg = _open(JpegImagePlugin.JpegImageFile, pixels, "JPEG")
        full_size = jpeg.size
        reduction = _reduce(jpeg, scale(full_size))
        image = _load(jpeg, "JPEG")
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        pixels, exif = _split_png(data)
        image = _load(_open(PngImagePlugin.PngImageFile, pixels, "PNG"), "PNG")
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_webp(data)
        # Leaves its EXIF unparsed.
        image = _load(_open(WebPImagePlugin.WebPImageFile, data, "WebP"), "WebP")
        exif = image.info.get("exif", b"")
    else:
        raise _unrecognised(data)
    rgb = _to_rgb(image)
    return Raster.of(rgb, full_size if reduction > 1 else rgb.size, reduction), _orientation(exif)


def _unrecognised(data: bytes) -> BadImageError:
    formats = [name for prefix, name in _KNOWN_BUT_UNSUPPORTED if data.startswith(prefix)]
    if data[4:8] == b"ftyp":
        formats.append(f"ISO media ({data[8:12].decode('ascii', 'replace')})")
    if formats:
        return BadImageError("unsupported", f"a {formats[0]} file; JPEG, PNG and WebP are read")
    return BadImageError("not_an_image", f"begins with {data[:12]!r}: no JPEG, PNG or WebP file")


def _open(
    plugin: Callable[[io.BytesIO], ImageFile.ImageFile], data: bytes, name: str
) -> ImageFile.ImageFile:
    """Reads the header with one named plugin of Pillow; all its complaints are about `data`."""
    with _complaints(name):
        image = plugin(io.BytesIO(data))
        _check_size(*image.size)
    return image


def _load(image: ImageFile.ImageFile, name: str) -> ImageFile.ImageFile:
    with _complaints(name):
        image.load()
    return image


@contextlib.contextmanager
def _complaints(name: str) -> Iterator[None]:
    try:
        yield
    except BadImageError:
        raise
    # The data are in memory, so an OSError is the decoder's, never the file system's.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise BadImageError(reason, f"{name}: {error}") from error


def _reduce(jpeg: ImageFile.ImageFile, scale: int) -> int:
    """Has a JPEG decoded at 1/`scale` of its size; returns the scale that the decoder chose."""
    if scale == 1:
        return 1
    width, height = jpeg.size
    # Rounded down, for Pillow takes the largest scale that leaves no less than is asked for.
    drafted = jpeg.draft(jpeg.mode, (width // scale, height // scale))
    return round(width / drafted[1][2]) if drafted else 1


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
