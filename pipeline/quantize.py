"""RGB pictures to at most k colours: k-means in sRGB, in milliseconds. Pure functions.

The algorithm, top-down; the kernels are in `pipeline.histograms` and
`pipeline.kmeans_kernels`:

1. One pass over the pixels counts them in bins of 4 levels a side and sums their colours, so that
   a bin has an exact mean. A picture with few bins is counted by its distinct colours instead.
2. Bins are merged to 8 levels a side. On these coarse points one cluster is split along principal
   axes until there are three times too many; then the cheapest pairs are merged (Ward 1963) down
   to k. With Lloyd alone after it, that ends 1.4 % above the best known error, splitting without
   merging at 2.7 %.
3. Weighted Lloyd, interleaved with "breaths" (Fritzke 2020): some clusters are split, Lloyd, as
   many merged, Lloyd. Ever smaller breaths, first on the coarse points, then, in cycles, with
   those of them that scatter within replaced by their bins. One exact iteration on pixels follows.
4. Every pixel is assigned to the nearest centre, exactly. A bin that lies wholly within one
   centre's cell needs one table look-up a pixel.
5. Each palette entry becomes the mean of its pixels, rounded half up.

What is exact: the assignment to the centres of step 3, which are rounded to quarters of a level
first; the means; a picture with at most k colours comes back unchanged. Rounding the palette moves
it after the assignment, so up to about 1 % of pixels may lie nearer to another entry.

The result depends on nothing but the pixels and the options: no random numbers, and distances and
sums are integers. `method="sklearn"` is scikit-learn's float arithmetic and may differ between CPU
models. All functions are safe in threads; the kernels release the GIL. Memory beyond the input and
the result: about 4 MB for a photograph, below 25 MB for the worst, which is colour noise.
"""

import dataclasses
from typing import Any

import numpy as np

from pipeline import histograms
from pipeline import kmeans_kernels as kernels
from pipeline.compiled import FloatArray, Int64Array, UInt8Array, UInt32Array
from pipeline.config import MAX_COLORS

# Luminance is Rec. 601 luma in thousandths: integers, so that a palette's order is exact.
LUMA_WEIGHTS = (299, 587, 114)

# Points a cluster needs, or its inner structure is lost in the bins: choose finer ones.
MIN_COARSE_POINTS = 12
MIN_FINE_POINTS = 32


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much work a method puts into the fit.

    Attributes:
        seeds: clusters of the seed before merging, as a multiple of k.
        coarse: clusters split and merged again by each breath on the coarse points, in 32nds of k.
        fine: likewise on the fine points.
        iterations: of Lloyd on the fine points at the end.
        polish: exact iterations of Lloyd, on pixels.
    """

    seeds: int
    coarse: tuple[int, ...]
    fine: tuple[int, ...]
    iterations: int
    polish: int


# Breaths from all clusters down to one. To begin anew gains more than to shrink more slowly.
CYCLE = (32, 6, 1)
EFFORTS = {
    "fast": Effort(seeds=3, coarse=CYCLE, fine=2 * CYCLE, iterations=1, polish=1),
    "quality": Effort(seeds=3, coarse=CYCLE, fine=4 * CYCLE, iterations=1, polish=2),
}
METHODS = (*EFFORTS, "sklearn")


def quantize(
    image: UInt8Array, colors: int = 32, method: str = "fast"
) -> tuple[UInt8Array, UInt8Array]:
    """Reduces a picture to at most `colors` colours.

    Args:
        image: uint8 (H, W, 3), sRGB. Any strides; read-only is fine; never written.
        colors: the most colours the result may have, 2 to 256.
        method: `fast`; `quality`, a little less error in half as much time again; or `sklearn`,
            KMeans of scikit-learn on all pixels with k-means++, one run, seed 0.

    Returns:
        indices: uint8 (H, W), the row of `palette` that replaces each pixel.
        palette: uint8 (n, 3), n <= colors, all rows distinct, all in use. Ordered by luma
            299 R + 587 G + 114 B (Rec. 601), ties by R, then G, then B. Not padded.

    Raises:
        ValueError: if the image is not a uint8 array (H, W, 3) with pixels, or `colors` or
            `method` is none of the above.
    """
    _check_arguments(image, colors, method)
    pixels = np.ascontiguousarray(image).reshape(-1, 3)
    pixels.flags.writeable = False  # a read-only array has a type of its own: compile only that
    keys, bins = histograms.histogram(pixels)
    fine = bins
    if len(bins) < MIN_FINE_POINTS * colors:
        fine = histograms.colour_moments(pixels, keys)
    if len(fine) <= colors:
        centres = _means(fine)
    elif method == "sklearn":
        centres = _fit_with_sklearn(pixels, colors)
    else:
        centres = _fit(keys, bins, fine, colors, EFFORTS[method])
        for _ in range(EFFORTS[method].polish):
            _, clusters = kernels.assign_pixels(pixels, keys, bins, centres)
            centres = _means(clusters[clusters[:, 0] > 0])
    labels, clusters = kernels.assign_pixels(pixels, keys, bins, centres)
    palette, rank = _ordered_palette(clusters.astype(np.int64))
    kernels.relabel(labels, rank)
    return labels.reshape(image.shape[:2]), palette


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
    """Compiles the kernels, or loads them from numba's cache on disk.

    Call it where a container image is built, so that its workers need not compile. The cache lies
    beside the package, or in `NUMBA_CACHE_DIR`, and holds for one CPU model.
    """
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    quantize(ramp, colors=8)


def _check_arguments(image: Any, colors: Any, method: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image is {kind}; it must be a NumPy array of uint8")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image has shape {image.shape}; it must be (H, W, 3) and not empty")
    if not isinstance(colors, int | np.integer) or not 2 <= colors <= MAX_COLORS:
        raise ValueError(f"colors is {colors!r}; it must be an integer, 2 to {MAX_COLORS}")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")


def _means(moments: FloatArray) -> FloatArray:
    """Means of points or clusters none of which is empty, (n, 3)."""
    means: FloatArray = moments[:, 1:] / moments[:, :1]
    return means


def _fit(
    keys: UInt32Array, bins: FloatArray, fine: FloatArray, colors: int, effort: Effort
) -> FloatArray:
    """Centres by the kernels, on the coarsest bins that have enough points for `colors`."""
    of_bins = fine is bins
    bins = _lightened(bins)
    fine = bins if of_bins else _lightened(fine)
    coarse, parents = histograms.coarsen(keys, bins)
    if not of_bins:
        parents = parents[:0]
    if len(coarse) < MIN_COARSE_POINTS * colors:
        coarse = bins if len(bins) >= MIN_COARSE_POINTS * colors else fine
        parents = parents[:0]
    centres: FloatArray = kernels.fit(
        coarse,
        fine,
        parents,
        int(colors),
        min(effort.seeds * colors, kernels.MAX_CENTRES),
        _amplitudes(effort.coarse, colors),
        _amplitudes(effort.fine, colors),
        effort.iterations,
    )
    return centres


def _lightened(moments: FloatArray) -> FloatArray:
    """Moments of the same means, with weights that the kernels' packed sums can hold.

    Only a picture of 2**24 pixels or more is changed: weights are halved until their sum is below
    `kernels.MAX_WEIGHT`, and rounded up, so that no point is lost.
    """
    weights = moments[:, 0]
    halvings = 0
    while weights.sum() / 2**halvings + len(weights) >= kernels.MAX_WEIGHT:
        halvings += 1
    if halvings == 0:
        return moments
    lighter: FloatArray = np.rint(moments * (np.ceil(weights / 2**halvings) / weights)[:, None])
    return lighter


def _amplitudes(thirty_seconds: tuple[int, ...], colors: int) -> Int64Array:
    """Clusters to split in each breath: 32nds of `colors`, rounded up."""
    return np.array([-(-share * int(colors) // 32) for share in thirty_seconds], np.int64)


def _fit_with_sklearn(pixels: UInt8Array, colors: int) -> FloatArray:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):  # the order of its sums follows the number of threads
        model = KMeans(colors, n_init=1, random_state=0).fit(pixels.astype(np.float32))
    centres: FloatArray = model.cluster_centers_.astype(np.float64)
    return centres


def _ordered_palette(clusters: Int64Array) -> tuple[UInt8Array, UInt8Array]:
    """Rounds the clusters' means, in order, equal ones once.

    Args:
        clusters: moments, int64 (k, 4): pixels and sums of r, g and b. May hold empty rows.

    Returns:
        palette: uint8 (n, 3).
        rank: uint8 (k,), the row of the palette for each cluster.
    """
    used = np.flatnonzero(clusters[:, 0])
    pixels, sums = clusters[used, :1], clusters[used, 1:]
    colours = (2 * sums + pixels) // (2 * pixels)
    luma = colours @ np.array(LUMA_WEIGHTS)
    keys, inverse = np.unique(luma << 24 | colours @ [1 << 16, 1 << 8, 1], return_inverse=True)
    palette = np.empty((len(keys), 3), np.uint8)
    palette[inverse] = colours
    rank = np.zeros(len(clusters), np.uint8)
    rank[used] = inverse
    return palette, rank


if __name__ == "__main__":
    warm_up()
