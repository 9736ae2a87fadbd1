"""RGB pictures to at most k colours, by k-means in sRGB. Pure functions."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import kmeans_kernels as kernels
from pipeline.config import MAX_COLORS

UInt8Array = npt.NDArray[np.uint8]

# Rec. 601 luma in thousandths: integers, so that the order of a palette is exact.
LUMA_WEIGHTS = (299, 587, 114)

FINE_POINTS = 32
COARSE_POINTS = 12


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much work a method does."""

    seeds: int
    coarse: tuple[int, ...]
    fine: tuple[int, ...]
    iterations: int
    polish: int


EFFORTS = {
    "fast": Effort(3, (16, 12, 10, 8, 6, 5, 4, 3, 2, 1), (8, 6, 4, 3, 2, 1), 4, 1),
    "quality": Effort(3, (16, 12, 10, 8, 6, 5, 4, 3, 2, 1), tuple(range(20, 0, -1)), 6, 3),
}


def quantize(
    image: UInt8Array, colors: int = 32, method: str = "fast"
) -> tuple[UInt8Array, UInt8Array]:
    """Reduces a picture to at most `colors` colours.

    Args:
        image: uint8 (H, W, 3), sRGB. Any strides; read-only is fine; never written.
        colors: the most colours the result may have, 2 to 256.
        method: `fast`, `quality`, or `sklearn` (scikit-learn's KMeans on all pixels).

    Returns:
        indices: uint8 (H, W), each the row of `palette` that replaces the pixel.
        palette: uint8 (n, 3), n <= colors, ordered by luminance, ties by RGB. Not padded.

    Raises:
        ValueError: if the image is not a non-empty uint8 (H, W, 3) array, or `colors` or `method`
            is out of range.
    """
    _check(image, colors, method)
    pixels = np.ascontiguousarray(image).reshape(-1, 3)
    keys, bins = kernels.histogram(pixels)
    few = kernels.colour_moments(pixels, keys) if len(keys) < FINE_POINTS * colors else None
    if few is not None and len(few) <= colors:
        centres = few[:, 1:] / few[:, :1]
    elif method == "sklearn":
        centres = _fit_sklearn(pixels, colors)
    else:
        effort = EFFORTS[method]
        fine = bins if few is None else few
        coarse = kernels.coarsen(keys, bins)
        if len(coarse) < COARSE_POINTS * colors:
            coarse = bins if len(bins) >= COARSE_POINTS * colors else fine
        centres = kernels.fit(
            coarse,
            fine,
            colors,
            min(effort.seeds * colors, kernels.MAX_CENTRES),
            _amplitudes(effort.coarse, colors),
            _amplitudes(effort.fine, colors),
            effort.iterations,
        )
        for _ in range(effort.polish):
            _, clusters = kernels.assign_pixels(pixels, keys, bins, centres)
            clusters = clusters[clusters[:, 0] > 0]
            centres = clusters[:, 1:] / clusters[:, :1]
    labels, clusters = kernels.assign_pixels(pixels, keys, bins, centres)
    clusters = clusters.astype(np.int64)
    indices, palette = _order(labels, clusters[:, 0], clusters[:, 1:])
    return indices.reshape(image.shape[:2]), palette


def _amplitudes(thirty_seconds: tuple[int, ...], colors: int) -> npt.NDArray[np.int64]:
    return np.array([-(-colors * a // 32) for a in thirty_seconds], np.int64)


def pad_palette(palette: UInt8Array, colors: int) -> UInt8Array:
    """Repeats a palette's last colour until it has `colors` rows.

    Args:
        palette: uint8 (n, 3), 1 <= n <= colors.
        colors: rows of the result.

    Returns:
        uint8 (colors, 3).

    Raises:
        ValueError: if the palette is empty or has more than `colors` rows.
    """
    if not 1 <= len(palette) <= colors:
        raise ValueError(f"a palette of {len(palette)} colours cannot be padded to {colors}")
    return np.concatenate([palette, np.repeat(palette[-1:], colors - len(palette), axis=0)])


def warm_up() -> None:
    """Compiles the kernels, or loads them from numba's cache on disk."""
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for method in ("fast", "quality"):
        quantize(ramp, colors=8, method=method)


def _check(image: Any, colors: int, method: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise ValueError(f"image must be a uint8 array, not {getattr(image, 'dtype', type(image))}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be (H, W, 3) and not empty; its shape is {image.shape}")
    if not 2 <= colors <= MAX_COLORS:
        raise ValueError(f"colors is {colors}; it must be 2 to {MAX_COLORS}")
    if method not in ("fast", "quality", "sklearn"):
        raise ValueError(f"method is {method!r}; choose fast, quality or sklearn")


def _fit_sklearn(pixels: UInt8Array, colors: int) -> npt.NDArray[np.float64]:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        model = KMeans(colors, n_init=1, random_state=0).fit(pixels.astype(np.float32))
    centres: npt.NDArray[np.float64] = model.cluster_centers_.astype(np.float64)
    return centres


def _order(labels: UInt8Array, weights: Any, totals: Any) -> tuple[UInt8Array, UInt8Array]:
    """Rounds means to colours, merges equal ones, drops empty ones and sorts by luminance."""
    used = np.flatnonzero(weights)
    means = (2 * totals[used] + weights[used, None]) // (2 * weights[used, None])
    luma = means @ np.array(LUMA_WEIGHTS)
    keys = luma << 24 | means @ np.array([1 << 16, 1 << 8, 1])
    unique, inverse = np.unique(keys, return_inverse=True)
    palette = np.empty((len(unique), 3), np.uint8)
    palette[inverse] = means
    rank = np.zeros(len(weights), np.uint8)
    rank[used] = inverse
    return rank[labels], palette


if __name__ == "__main__":
    warm_up()
