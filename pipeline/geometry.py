"""Boxes and rasters: crop, EXIF orientation and fit, for the picture and its box alike.

All coordinates are in pixels of the full picture, also where a JPEG was decoded at a fraction.
"""

import dataclasses
from collections.abc import Callable

from PIL import Image

from pipeline.config import Fit
from pipeline.rejects import BadImageError

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 as annotated: 1-based, ends included
Rect = tuple[float, float, float, float]  # left, top, right, bottom; pixel edges from 0

# EXIF 2.3, tag Orientation: what to do to the stored raster to see it upright.
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class Raster:
    """A picture, or a part of it, whose image may have been decoded at a fraction of its size.

    Attributes:
        image: the pixels.
        size: (width, height) of the part, in pixels of the full picture.
        scale: pixels of the full picture on the side of a pixel of `image`.
        part: left, top, right, bottom of the part in `image`; all of it where `scale` is 1.
    """

    image: Image.Image
    size: tuple[int, int]
    scale: int
    part: Rect

    @classmethod
    def of(cls, image: Image.Image, size: tuple[int, int], scale: int) -> "Raster":
        """Returns the raster of a whole picture; its last column and row may be partly beyond."""
        return cls(image, size, scale, (0, 0, size[0] / scale, size[1] / scale))

    def crop(self, cut: tuple[int, int, int, int]) -> "Raster":
        """Returns a part: left, top, right, bottom, in pixels of the full picture."""
        size = cut[2] - cut[0], cut[3] - cut[1]
        if self.scale == 1:
            return Raster.of(self.image.crop(cut), size, 1)
        left, top, right, bottom = (edge / self.scale for edge in cut)
        part = shift((left, top, right, bottom), self.part[0], self.part[1])
        return dataclasses.replace(self, size=size, part=part)

    def transpose(self, orientation: int) -> "Raster":
        """Returns the picture upright; orientation 2 to 8."""
        part = transpose_rect(self.part, self.image.size, orientation)
        size = self.size[::-1] if orientation >= 5 else self.size
        return Raster(self.image.transpose(TRANSPOSE[orientation]), size, self.scale, part)

    def resize(self, width: int, height: int) -> Image.Image:
        """Returns the part as an image of this size."""
        return self.image.resize(
            (width, height), Image.Resampling.LANCZOS, box=self.part, reducing_gap=None
        )


def clip(box: Box, size: tuple[int, int]) -> Rect:
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


def with_margin(rect: Rect, margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns whole pixels: `rect` with `margin` of its side on each side, inside the raster."""
    left, top, right, bottom = rect
    dx, dy = round(margin * (right - left)), round(margin * (bottom - top))
    return (
        max(int(left) - dx, 0),
        max(int(top) - dy, 0),
        min(int(right) + dx, size[0]),
        min(int(bottom) + dy, size[1]),
    )


def shift(rect: Rect, dx: float, dy: float) -> Rect:
    """Returns `rect` moved."""
    return rect[0] + dx, rect[1] + dy, rect[2] + dx, rect[3] + dy


def _scale(rect: Rect, sx: float, sy: float) -> Rect:
    return rect[0] * sx, rect[1] * sy, rect[2] * sx, rect[3] * sy


def transpose_rect(rect: Rect, size: tuple[int, int], orientation: int) -> Rect:
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


def normalise(rect: Rect, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Returns `rect` as (ymin, xmin, ymax, xmax) in [0, 1] of a raster of (width, height)."""
    left, top, right, bottom = (
        min(max(edge / side, 0.0), 1.0) for edge, side in zip(rect, size * 2, strict=True)
    )
    return top, left, bottom, right


def _stretch(raster: Raster, rect: Rect, side: int) -> tuple[Image.Image, Rect]:
    width, height = raster.size
    return raster.resize(side, side), _scale(rect, side / width, side / height)


def _pad(raster: Raster, rect: Rect, side: int) -> tuple[Image.Image, Rect]:
    factor = side / max(raster.size)
    width, height = (max(round(length * factor), 1) for length in raster.size)
    dx, dy = (side - width) // 2, (side - height) // 2
    square = Image.new("RGB", (side, side))
    square.paste(raster.resize(width, height), (dx, dy))
    scaled = _scale(rect, width / raster.size[0], height / raster.size[1])
    return square, shift(scaled, dx, dy)


def _center_crop(raster: Raster, rect: Rect, side: int) -> tuple[Image.Image, Rect]:
    width, height = raster.size
    shorter = min(width, height)
    dx, dy = (width - shorter) // 2, (height - shorter) // 2
    square = raster.crop((dx, dy, dx + shorter, dy + shorter))
    return _stretch(square, shift(rect, -dx, -dy), side)


FITS: dict[Fit, Callable[[Raster, Rect, int], tuple[Image.Image, Rect]]] = {
    "stretch": _stretch,
    "pad": _pad,
    "center_crop": _center_crop,
}
