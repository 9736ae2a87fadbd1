"""Facts on pictures as integers that add up.

Sums of integers do not depend on the order of the summands, so shards made by any number of
workers, in any order, give the same report. Nothing is averaged before the end.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE_BIN = 50  # pixels
AREA_BIN = 50_000  # pixels; a twentieth of a megapixel

Histogram = Mapping[int, int]  # what is counted (or its bin's lower edge) -> how often


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Sums over pictures; `Statistics()` is of none.

    Attributes:
        pictures: how many.
        source_bytes: sizes of their files.
        source_pixels: pixels of the rasters as stored in those files.
        stored_pixels: pixels as written, after crop and resize.
        exact: pictures that quantization left as they were.
        squared_error: (stored - prepared)², summed over pixels and channels.
        error_values: how many values `squared_error` is summed over, 3 a pixel; pictures in `exact`
            are not among them, since one of them would make any mean look better.
        labels: pictures by label.
        source_widths: by width in pixels, lower edges of bins of `SIDE_BIN`.
        source_heights: likewise by height.
        source_areas: by width × height in pixels, lower edges of bins of `AREA_BIN`.
        colors: by number of different colours as written; empty if nothing was quantized.

    Raises:
        ValueError: when made, if the sums contradict each other.
    """

    pictures: int = 0
    source_bytes: int = 0
    source_pixels: int = 0
    stored_pixels: int = 0
    exact: int = 0
    squared_error: int = 0
    error_values: int = 0
    labels: Histogram = dataclasses.field(default_factory=dict)
    source_widths: Histogram = dataclasses.field(default_factory=dict)
    source_heights: Histogram = dataclasses.field(default_factory=dict)
    source_areas: Histogram = dataclasses.field(default_factory=dict)
    colors: Histogram = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("labels", "source_widths", "source_heights", "source_areas"):
            counted = sum(getattr(self, name).values())
            if counted != self.pictures:
                raise ValueError(f"{name} counts {counted} pictures of {self.pictures}")
        if not 0 <= self.exact <= self.pictures:
            raise ValueError(f"{self.exact} of {self.pictures} pictures cannot be exact")
        if self.squared_error < 0 or (self.squared_error > 0) != (self.error_values > 0):
            raise ValueError(
                f"a squared error of {self.squared_error} over {self.error_values} values"
            )

    def __add__(self, other: "Statistics") -> "Statistics":
        """Returns the statistics of both sets of pictures together."""
        sums: dict[str, Any] = {
            field.name: _sum(getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
        }
        return Statistics(**sums)

    def psnr(self) -> float | None:
        """Returns the peak signal-to-noise ratio in dB of the summed squared error.

        10 log10(255² / MSE), over the pictures that are not exact; None if all of them are.
        """
        if not self.squared_error:
            return None
        return 10 * math.log10(255**2 * self.error_values / self.squared_error)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object with sorted histograms, the inverse of `from_json`."""
        return {
            field.name: _json_of(getattr(self, field.name)) for field in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Statistics":
        """Returns the statistics that `to_json` wrote; an unknown key is a TypeError."""
        fields: dict[str, Any] = {
            name: {int(key): n for key, n in item.items()} if isinstance(item, dict) else item
            for name, item in value.items()
        }
        return cls(**fields)


def of_picture(
    *,
    label: int,
    source_bytes: int,
    source_size: tuple[int, int],
    prepared: NDArray[np.uint8],
    stored: NDArray[np.uint8] | None,
    colors: int | None = None,
) -> Statistics:
    """Returns the statistics of one picture.

    Args:
        label: index of its class.
        source_bytes: size of its file.
        source_size: (height, width) in pixels of the raster in the file.
        prepared: uint8 (H, W, 3), as it went into the quantizer.
        stored: uint8 (H, W, 3), as it came out; None if it is stored without quantization.
        colors: number of different colours in `stored`; counted if it is not given.

    Raises:
        ValueError: if `prepared` and `stored` differ in shape.
    """
    height, width = source_size
    error = 0 if stored is None else _squared_error(prepared, stored)
    if stored is not None and colors is None:
        colors = _count_colors(stored)
    return Statistics(
        pictures=1,
        source_bytes=source_bytes,
        source_pixels=height * width,
        stored_pixels=prepared.shape[0] * prepared.shape[1],
        exact=int(error == 0),
        squared_error=error,
        error_values=prepared.size if error else 0,
        labels={label: 1},
        source_widths={width // SIDE_BIN * SIDE_BIN: 1},
        source_heights={height // SIDE_BIN * SIDE_BIN: 1},
        source_areas={height * width // AREA_BIN * AREA_BIN: 1},
        colors={} if colors is None else {colors: 1},
    )


def _squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    if a.shape != b.shape:
        raise ValueError(f"prepared has shape {a.shape}, stored {b.shape}")
    difference = np.subtract(a, b, dtype=np.int32)
    return int(np.sum(difference * difference, dtype=np.int64))


def _count_colors(rgb: NDArray[np.uint8]) -> int:
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    # Unsorted uses a hash table: 0.5 ms for 256² pixels, where a sort of arbitrary colours takes 3.
    return len(np.unique(red << 16 | green << 8 | blue, sorted=False))


def _sum(a: Any, b: Any) -> Any:
    """Returns a + b of two integers or of two histograms."""
    if isinstance(a, Mapping):
        return {key: a.get(key, 0) + b.get(key, 0) for key in a.keys() | b.keys()}
    return a + b


def _json_of(value: int | Histogram) -> int | dict[str, int]:
    if isinstance(value, Mapping):
        return {str(key): value[key] for key in sorted(value)}
    return value
