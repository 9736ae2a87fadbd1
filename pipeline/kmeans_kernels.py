"""Compiled kernels of the k-means colour quantizer; `pipeline.quantize` tells the algorithm.

Pixels, bins and moments are those of `pipeline.histograms`. *Centres* are float64 (k, 3), in
levels. Distances to centres are integers, in quarters of a level; the remaining float operations
are scalar, correctly rounded and in one order: the same bytes on every CPU.
"""

import math

import numpy as np

from pipeline.compiled import (
    I32,
    Count,
    FloatArray,
    Int32Array,
    Int64Array,
    U,
    UInt8Array,
    UInt16Array,
    UInt32Array,
    UInt64Array,
    entry,
    inner,
)
from pipeline.histograms import BINS

Points = tuple[Int32Array, Int32Array, Int32Array, UInt64Array]

SCALE = 4  # fixed point: distances are taken between quarters of a level
LABEL_BITS = 9  # 3 * 512**2 + 2 * 3 * 512**2 = 2**21.2 scores, times 512 labels: below 2**31
LABEL_MASK = (1 << LABEL_BITS) - 1
MAX_CENTRES = 1 << LABEL_BITS
CHUNK = 4096  # pixels; 255 * 4096 < 2**21, three such sums fit 64 bits
MIXED = 255  # in place of a bin's label; bins of a 256th centre count as mixed too
BLOCK = 512  # points whose best scores stay in the first-level cache
MAX_WEIGHT = 1 << 24  # of all points of a fit; times 255 it still fits 32 bits
REFINE_SHARE = 2e-5

# Which points are looked at, by steps.
ALL, HALF = np.int64(1), np.int64(2)

# Iterations of Lloyd. NumPy integers: numba compiles a function anew for each Python constant.
AFTER_SEED_SPLIT = np.int64(1)
AFTER_SPLIT = np.int64(3)
AFTER_MERGE = np.int64(4)
AFTER_CHANGE_OF_POINTS = np.int64(3)


@inner
def _fixed_points(moments: FloatArray) -> Points:
    """The points in fixed point: int32 x, y, z and their packed moments, uint64 (n, 2).

    Coordinates are relative to mid-gray, in quarters of a level. The packed words are the weight
    above the sum of r and the sum of g above the sum of b, 32 bits each, so that two additions add
    all four. The weights' sum must be below MAX_WEIGHT.
    """
    n = U(len(moments))
    x, y, z = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    packed = np.empty((n, 2), np.uint64)
    for i in range(n):
        scale = SCALE / moments[i, 0]
        x[i] = np.rint(moments[i, 1] * scale) - 128 * SCALE
        y[i] = np.rint(moments[i, 2] * scale) - 128 * SCALE
        z[i] = np.rint(moments[i, 3] * scale) - 128 * SCALE
        packed[i, 0] = U(moments[i, 0]) << U(32) | U(moments[i, 1])
        packed[i, 1] = U(moments[i, 2]) << U(32) | U(moments[i, 3])
    return x, y, z, packed


@inner
def _fixed_centres(centres: FloatArray) -> Int32Array:
    """Centres relative to mid-gray in quarters of a level, int32 (k, 3)."""
    fixed = np.empty((len(centres), 3), np.int32)
    for j in range(len(centres)):
        for channel in range(3):
            fixed[j, channel] = np.rint(centres[j, channel] * SCALE) - 128 * SCALE
    return fixed


@inner
def _score_planes(fixed: Int32Array) -> Int32Array:
    """Coefficients (k rounded up to a multiple of 4, 4) of the scores of `_best_scores`.

    `|p - c|**2 - |p|**2 = |c|**2 - 2 c.p` is linear in p. Shifted left by LABEL_BITS it leaves
    room for the label, so that one minimum finds distance and label, the lowest label at a tie.
    """
    planes = np.zeros(((len(fixed) + 3) // 4 * 4, 4), np.int32)
    for j in range(len(fixed), len(planes)):
        planes[j, 3] = 2**31 - 1  # the padding never wins
    for j in range(len(fixed)):
        square = 0
        for channel in range(3):
            planes[j, channel] = -2 * (fixed[j, channel] << LABEL_BITS)
            square += fixed[j, channel] * fixed[j, channel]
        planes[j, 3] = (square << LABEL_BITS) | j
    return planes


@inner
def _best_scores(
    x: Int32Array, y: Int32Array, z: Int32Array, planes: Int32Array, best: Int32Array
) -> None:
    """Writes the least score of each point; its lower LABEL_BITS are the nearest centre's label.

    Brute force: with vector instructions 2.6 ns a point at 32 centres, less than any pruning
    costs. Four centres a sweep, because one a sweep spends its time on loading and storing.
    """
    n = U(len(best))
    for i in range(n):
        best[i] = np.int32(2**31 - 1)
    for j in range(0, len(planes), 4):
        a0, b0, c0, d0 = planes[j, 0], planes[j, 1], planes[j, 2], planes[j, 3]
        a1, b1, c1, d1 = planes[j + 1, 0], planes[j + 1, 1], planes[j + 1, 2], planes[j + 1, 3]
        a2, b2, c2, d2 = planes[j + 2, 0], planes[j + 2, 1], planes[j + 2, 2], planes[j + 2, 3]
        a3, b3, c3, d3 = planes[j + 3, 0], planes[j + 3, 1], planes[j + 3, 2], planes[j + 3, 3]
        for i in range(n):
            s0 = I32(x[i] * a0 + y[i] * b0 + z[i] * c0 + d0)
            s1 = I32(x[i] * a1 + y[i] * b1 + z[i] * c1 + d1)
            s2 = I32(x[i] * a2 + y[i] * b2 + z[i] * c2 + d2)
            s3 = I32(x[i] * a3 + y[i] * b3 + z[i] * c3 + d3)
            best[i] = min(best[i], min(min(s0, s1), min(s2, s3)))


@inner
def _assign(points: Points, centres: FloatArray, labels: UInt16Array, clusters: FloatArray) -> None:
    """Writes the label of the nearest centre of each point, and the clusters' moments (k, 4).

    Neighbouring points often have one label; four sets of sums in turn keep an addition from
    waiting for the one before.
    """
    x, y, z, packed = points
    planes = _score_planes(_fixed_centres(centres))
    best = np.empty(BLOCK, np.int32)
    sums = np.zeros((4, len(centres), 2), np.uint64)
    n = U(len(labels))
    for start in range(U(0), n, U(BLOCK)):
        stop = min(start + U(BLOCK), n)
        scores = best[: stop - start]
        _best_scores(x[start:stop], y[start:stop], z[start:stop], planes, scores)
        for i in range(start, stop):
            label = U(scores[i - start] & LABEL_MASK)
            labels[i] = label
            row = sums[i & U(3), label]
            row[0] += packed[i, 0]
            row[1] += packed[i, 1]
    for j in range(len(centres)):
        first = (sums[0, j, 0] + sums[1, j, 0]) + (sums[2, j, 0] + sums[3, j, 0])
        second = (sums[0, j, 1] + sums[1, j, 1]) + (sums[2, j, 1] + sums[3, j, 1])
        clusters[j, 0] = first >> U(32)
        clusters[j, 1] = first & U(0xFFFFFFFF)
        clusters[j, 2] = second >> U(32)
        clusters[j, 3] = second & U(0xFFFFFFFF)


@inner
def _lloyd(
    points: Points,
    centres: FloatArray,
    clusters: FloatArray,
    labels: UInt16Array,
    iterations: Count,
) -> None:
    """Moves `centres` by iterations of Lloyd (1982). An empty cluster keeps its centre."""
    for _ in range(iterations):
        _assign(points, centres, labels, clusters)
        for j in range(len(centres)):
            if clusters[j, 0] > 0:
                for channel in range(3):
                    centres[j, channel] = clusters[j, 1 + channel] / clusters[j, 0]


@inner
def _scatter(
    points: Points, labels: UInt16Array, centres: FloatArray, every: Count, scatter: FloatArray
) -> None:
    """Writes the clusters' scatter matrices: sums of w d d' as rr, gg, bb, rg, rb, gb; (k, 6).

    With `every` above 1 only every so many points are looked at: half is enough for a hint where
    to split, and the breaths end lower for it, by 0.05 % of the error.
    """
    x, y, z, packed = points
    k = len(scatter)
    fixed = _fixed_centres(centres)
    sums = np.zeros((k, 6), np.int64)  # weight 2**24 times distance 2**20: below 2**63
    for i in range(U(0), U(len(labels)), U(every)):
        label = U(labels[i])
        weight = np.int64(packed[i, 0] >> U(32))
        r = np.int64(x[i] - fixed[label, 0])
        g = np.int64(y[i] - fixed[label, 1])
        b = np.int64(z[i] - fixed[label, 2])
        wr, wg, wb = weight * r, weight * g, weight * b
        row = sums[label]
        row[0] += wr * r
        row[1] += wg * g
        row[2] += wb * b
        row[3] += wr * g
        row[4] += wr * b
        row[5] += wg * b
    for j in range(k):
        for field in range(6):
            scatter[j, field] = every * sums[j, field] / (SCALE * SCALE)


@inner
def _principal_axis(scatter: FloatArray, axis: FloatArray) -> float:
    """Writes the unit axis of largest scatter; returns the scatter along it. Power iteration."""
    rr, gg, bb, rg, rb, gb = scatter
    if rr >= gg and rr >= bb:
        r, g, b = rr, rg, rb
    elif gg >= bb:
        r, g, b = rg, gg, gb
    else:
        r, g, b = rb, gb, bb
    along = 0.0
    for _ in range(8):  # the axis is a hint that Lloyd corrects; more digits would not help
        length = math.sqrt(r * r + g * g + b * b)
        if length <= 1e-9:
            return 0.0
        r, g, b = r / length, g / length, b / length
        axis[0], axis[1], axis[2] = r, g, b
        r, g, b = rr * r + rg * g + rb * b, rg * r + gg * g + gb * b, rb * r + gb * g + bb * b
        along = axis[0] * r + axis[1] * g + axis[2] * b
    return along


@inner
def _split(
    scatter: FloatArray, clusters: FloatArray, centres: FloatArray, k: Count, extra: Count
) -> Count:
    """Splits the `extra` of k clusters whose scatter along their principal axis is largest.

    The halves of a normal distribution have their means sqrt(2 / pi) standard deviations off.
    `centres` must have room for k + extra rows. Returns how many there are now.
    """
    axes = np.empty((k, 3))
    along = np.empty(k)
    for j in range(k):
        along[j] = _principal_axis(scatter[j], axes[j])
    total = k
    for _ in range(extra):
        widest = np.argmax(along)
        if along[widest] <= 0.0:
            break
        offset = math.sqrt(along[widest] / clusters[widest, 0] * 2 / math.pi)
        along[widest] = 0.0
        for channel in range(3):
            centre = centres[widest, channel]
            centres[total, channel] = centre + offset * axes[widest, channel]
            centres[widest, channel] = centre - offset * axes[widest, channel]
        total += 1
    return total


@inner
def _ward_cost(clusters: FloatArray, centres: FloatArray, i: Count, j: Count) -> float:
    """By how much merging two clusters raises the sum of squares (Ward 1963)."""
    weight = clusters[i, 0] + clusters[j, 0]
    if weight == 0.0:
        return 0.0
    r = centres[i, 0] - centres[j, 0]
    g = centres[i, 1] - centres[j, 1]
    b = centres[i, 2] - centres[j, 2]
    return (r * r + g * g + b * b) * (clusters[i, 0] * clusters[j, 0] / weight)


@inner
def _merge(clusters: FloatArray, centres: FloatArray, total: Count, k: Count) -> Count:
    """Merges the cheapest pair of clusters until k are left, in the first k rows of both arrays.

    Ward's agglomeration, called pairwise nearest neighbour in quantization (Equitz 1989).
    """
    mate = np.zeros(total, np.int64)
    cost = np.empty(total)
    for i in range(total):
        cost[i] = np.inf
        for j in range(i):
            merged = _ward_cost(clusters, centres, i, j)
            if merged < cost[i]:
                cost[i], mate[i] = merged, j
            if merged < cost[j]:
                cost[j], mate[j] = merged, i
    while total > k:
        cheapest = np.argmin(cost[:total])
        kept = min(cheapest, mate[cheapest])
        gone = max(cheapest, mate[cheapest])
        for field in range(4):
            clusters[kept, field] += clusters[gone, field]
        if clusters[kept, 0] > 0.0:
            for channel in range(3):
                centres[kept, channel] = clusters[kept, 1 + channel] / clusters[kept, 0]
        total -= 1
        last = total  # its row moves into the gap
        for field in range(4):
            clusters[gone, field] = clusters[last, field]
        for channel in range(3):
            centres[gone, channel] = centres[last, channel]
        cost[gone], mate[gone] = cost[last], mate[last]
        for other in range(total):
            if other == kept or mate[other] == kept or mate[other] == gone:
                cost[other] = np.inf
                for candidate in range(total):
                    if candidate != other:
                        merged = _ward_cost(clusters, centres, other, candidate)
                        if merged < cost[other]:
                            cost[other], mate[other] = merged, candidate
            else:
                if mate[other] == last:
                    mate[other] = gone
                merged = _ward_cost(clusters, centres, other, kept)
                if merged < cost[other]:
                    cost[other], mate[other] = merged, kept
    return total


@inner
def _squared_sum_over_weight(moments: FloatArray, j: Count) -> float:
    """|sum|**2 / weight of one row: what its mean explains of the sum of squares."""
    r, g, b = moments[j, 1], moments[j, 2], moments[j, 3]
    return (r * r + g * g + b * b) / moments[j, 0]


@inner
def _breathe(
    points: Points,
    centres: FloatArray,
    clusters: FloatArray,
    labels: UInt16Array,
    k: Count,
    amplitudes: Int64Array,
) -> None:
    """Lets the number of clusters breathe: k + m and back to k, for each m of `amplitudes`.

    After Fritzke, "The breathing k-means algorithm" (2020): splits and merges carry centres over
    barriers where Lloyd alone stands still. The clusters split are those of largest principal
    scatter, the ones given up Ward's cheapest. Here m shrinks, in cycles, and a breath that made
    things worse is not taken back, as in annealing: the next ones start from there. The best
    centres seen are what remains.
    """
    scatter = np.empty((len(centres), 6))
    best = centres[:k].copy()
    most = _explained(clusters, k)
    for m in amplitudes:
        _scatter(points, labels, centres, HALF, scatter[:k])
        total = _split(scatter, clusters, centres, k, m)
        _lloyd(points, centres[:total], clusters[:total], labels, AFTER_SPLIT)
        _merge(clusters, centres, total, k)
        _lloyd(points, centres[:k], clusters[:k], labels, AFTER_MERGE)
        explained = _explained(clusters, k)
        if explained > most:
            most = explained
            _copy(centres[:k], best)
    _copy(best, centres[:k])


@inner
def _copy(source: FloatArray, target: FloatArray) -> None:
    """Copies centres, (k, 3)."""
    for j in range(len(source)):
        for channel in range(3):
            target[j, channel] = source[j, channel]


@inner
def _explained(clusters: FloatArray, k: Count) -> float:
    """Sum of squares that the means explain; what is left of the total is k-means's error."""
    explained = 0.0
    for j in range(k):
        if clusters[j, 0] > 0.0:
            explained += _squared_sum_over_weight(clusters, j)
    return explained


@inner
def _seed(
    points: Points,
    centres: FloatArray,
    clusters: FloatArray,
    labels: UInt16Array,
    over: Count,
    k: Count,
) -> Count:
    """Writes k centres: splits one cluster to `over`, half as many again a time, then merges.

    `labels` must be 0. Returns how many there are; fewer than k only if there are fewer points.
    """
    scatter = np.empty((len(centres), 6))
    _lloyd(points, centres[:1], clusters[:1], labels, np.int64(1))
    total = np.int64(1)
    while total < over:
        _scatter(points, labels, centres, ALL, scatter[:total])
        grown = _split(scatter, clusters, centres, total, min(over - total, (total + 1) // 2))
        if grown == total:
            break
        total = grown
        _lloyd(points, centres[:total], clusters[:total], labels, AFTER_SEED_SPLIT)
    return _merge(clusters, centres, total, k)


@inner
def _refine(
    coarse: FloatArray, fine: FloatArray, parents: UInt32Array, explained: float
) -> FloatArray:
    """Replaces the coarse points that scatter within by the fine points they were merged from.

    Those whose inner scatter is below a REFINE_SHARE of k-means's whole error stay as they are: a
    third of the points is saved, and no error that could be measured added.

    Args:
        coarse: moments, (m, 4).
        fine: moments, (n, 4).
        parents: row of `coarse` for each row of `fine`, (n,).
        explained: by the clusters so far; see `_explained`.

    Returns:
        Moments of the mixed points.
    """
    within = np.empty(len(coarse))
    for j in range(U(len(coarse))):
        within[j] = -_squared_sum_over_weight(coarse, j)
    error = -explained
    for i in range(U(len(fine))):
        squares = _squared_sum_over_weight(fine, i)
        within[parents[i]] += squares
        error += squares
    mixed = np.empty((len(fine), 4))  # a coarse point has at least one fine one
    n = U(0)
    for i in range(U(len(fine))):
        parent = parents[i]
        if within[parent] > REFINE_SHARE * error:
            for field in range(4):
                mixed[n, field] = fine[i, field]
            n += U(1)
    for j in range(U(len(coarse))):
        if within[j] <= REFINE_SHARE * error:
            for field in range(4):
                mixed[n, field] = coarse[j, field]
            n += U(1)
    return mixed[:n]


@entry
def fit(
    coarse: FloatArray,
    fine: FloatArray,
    parents: UInt32Array,
    k: Count,
    over: Count,
    coarse_amplitudes: Int64Array,
    fine_amplitudes: Int64Array,
    iterations: Count,
) -> FloatArray:
    """Weighted k-means: seeds and breathes on coarse points, goes on breathing on finer ones.

    Args:
        coarse: moments of few points, (m, 4).
        fine: moments of the points that count, (n, 4).
        parents: row of `coarse` that each row of `fine` was merged into, (n,); empty if the two
            are not so related, and then all fine points are used.
        k: clusters, at most 256.
        over: clusters of the seed before it is merged to k, at most MAX_CENTRES.
        coarse_amplitudes: see `_breathe`; each at most k, int64.
        fine_amplitudes: likewise.
        iterations: of Lloyd on the fine points at the end.

    Returns:
        Centres, float64 (at most k, 3).
    """
    centres = np.zeros((max(over, 2 * k), 3))
    clusters = np.zeros((len(centres), 4))
    labels = np.zeros(len(coarse), np.uint16)
    points = _fixed_points(coarse)
    k = _seed(points, centres, clusters, labels, over, k)
    _lloyd(points, centres[:k], clusters[:k], labels, AFTER_CHANGE_OF_POINTS)
    _breathe(points, centres, clusters, labels, k, coarse_amplitudes)
    if len(parents) > 0:
        fine = _refine(coarse, fine, parents, _explained(clusters, k))
    labels = np.zeros(len(fine), np.uint16)
    points = _fixed_points(fine)
    _lloyd(points, centres[:k], clusters[:k], labels, AFTER_CHANGE_OF_POINTS)
    _breathe(points, centres, clusters, labels, k, fine_amplitudes)
    _lloyd(points, centres[:k], clusters[:k], labels, iterations)
    return centres[:k].copy()


@inner
def _bin_labels(
    keys: UInt32Array,
    moments: FloatArray,
    fixed: Int32Array,
    planes: Int32Array,
    clusters: FloatArray,
) -> UInt8Array:
    """Returns for each bin its centre's label where all 64 colours share it, else MIXED; uint8.

    Cells of nearest centres are convex, and a score difference is linear: centre a is nearest all
    over the bin's box if no other comes nearer even at its worst corner, which lies as far from
    the box's middle as half the sides, weighted by the difference's coefficients. All in integers.
    The moments of such bins are written to `clusters`: their pixels need no visit for that.
    """
    k = U(len(fixed))
    half = SCALE * 3 // 2  # of the 3 steps between a bin's first and last level
    a, b, c = np.empty(k, np.int32), np.empty(k, np.int32), np.empty(k, np.int32)
    worst = np.empty((k, k), np.int32)  # constant part of j's score at the corner worst for i
    for j in range(k):
        a[j], b[j], c[j] = -2 * fixed[j, 0], -2 * fixed[j, 1], -2 * fixed[j, 2]
        square = fixed[j, 0] * fixed[j, 0] + fixed[j, 1] * fixed[j, 1] + fixed[j, 2] * fixed[j, 2]
        for i in range(k):
            span = 0
            for channel in range(3):
                span += abs(fixed[i, channel] - fixed[j, channel])
            worst[i, j] = square - 2 * half * span
        worst[j, j] = 2**29  # no rival of itself
    table = np.empty(BINS, np.uint8)
    x, y, z = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    best = np.empty(BLOCK, np.int32)
    sums = np.zeros((4, k + U(1), 4))  # four in turn as in `_assign`; row k takes mixed bins
    n = U(len(keys))
    for start in range(U(0), n, U(BLOCK)):
        size = min(U(BLOCK), n - start)
        for i in range(size):
            key = keys[start + i]
            x[i] = 4 * SCALE * I32(key >> 12) + half - 128 * SCALE
            y[i] = 4 * SCALE * I32(key >> 6 & 63) + half - 128 * SCALE
            z[i] = 4 * SCALE * I32(key & 63) + half - 128 * SCALE
        _best_scores(x[:size], y[:size], z[:size], planes, best[:size])
        for i in range(size):
            label = U(best[i] & LABEL_MASK)
            xi, yi, zi, row = x[i], y[i], z[i], worst[label]
            rival = I32(2**31 - 1)
            for j in range(k):
                rival = min(rival, I32(row[j] + xi * a[j] + yi * b[j] + zi * c[j]))
            pure = rival > best[i] >> LABEL_BITS and label != U(MIXED)
            table[keys[start + i]] = label if pure else U(MIXED)
            into = sums[i & U(3), label if pure else k]
            for field in range(4):
                into[field] += moments[start + i, field]
    for j in range(k):
        for field in range(4):
            clusters[j, field] = (sums[0, j, field] + sums[1, j, field]) + (
                sums[2, j, field] + sums[3, j, field]
            )
    return table


@entry
def assign_pixels(
    pixels: UInt8Array, keys: UInt32Array, moments: FloatArray, centres: FloatArray
) -> tuple[UInt8Array, FloatArray]:
    """Assigns each pixel to the nearest centre, exactly.

    Most bins lie wholly in one centre's cell: their pixels take its label from a table, about
    four in five. Only the others are compared with all centres. Memory beyond the labels: 0.4 MB.

    Args:
        pixels: uint8 (N, 3).
        keys: of the occupied bins, from `histogram`.
        moments: of the bins, likewise.
        centres: float64 (k, 3), 1 <= k <= 256; rounded here to quarters of a level.

    Returns:
        labels: uint8 (N,); the lowest of those equally near.
        clusters: moments of the clusters, (k, 4); exact integers.
    """
    k = U(len(centres))
    fixed = _fixed_centres(centres)
    planes = _score_planes(fixed)
    clusters = np.zeros((k, 4))
    table = _bin_labels(keys, moments, fixed, planes, clusters)
    x, y, z = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    best = np.empty(CHUNK, np.int32)
    places = np.empty(CHUNK + 1, np.uint32)
    counts, sums = np.zeros(k, np.uint64), np.zeros(k, np.uint64)
    n = U(len(pixels))
    labels = np.empty(n, np.uint8)
    for start in range(U(0), n, U(CHUNK)):
        stop = min(start + U(CHUNK), n)
        mixed = U(0)
        for i in range(start, stop):
            r, g, b = U(pixels[i, 0]), U(pixels[i, 1]), U(pixels[i, 2])
            label = table[((r >> U(2)) << U(12)) | ((g >> U(2)) << U(6)) | (b >> U(2))]
            labels[i] = label
            places[mixed] = i
            mixed += U(label == MIXED)
        for m in range(mixed):
            place = U(places[m])
            x[m] = SCALE * (I32(pixels[place, 0]) - 128)
            y[m] = SCALE * (I32(pixels[place, 1]) - 128)
            z[m] = SCALE * (I32(pixels[place, 2]) - 128)
        _best_scores(x[:mixed], y[:mixed], z[:mixed], planes, best[:mixed])
        for m in range(mixed):
            place = U(places[m])
            nearest = U(best[m] & LABEL_MASK)
            labels[place] = nearest
            counts[nearest] += U(1)
            r, g, b = U(pixels[place, 0]), U(pixels[place, 1]), U(pixels[place, 2])
            sums[nearest] += r | (g << U(21)) | (b << U(42))
        for j in range(k):
            clusters[j, 0] += counts[j]
            clusters[j, 1] += sums[j] & U(2**21 - 1)
            clusters[j, 2] += (sums[j] >> U(21)) & U(2**21 - 1)
            clusters[j, 3] += sums[j] >> U(42)
            counts[j] = 0
            sums[j] = 0
    return labels, clusters


@entry
def relabel(labels: UInt8Array, rank: UInt8Array) -> None:
    """Replaces each label by `rank[label]`, in place."""
    for i in range(U(len(labels))):
        labels[i] = rank[labels[i]]
