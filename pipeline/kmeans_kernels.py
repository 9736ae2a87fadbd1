"""Compiled kernels of the k-means colour quantizer in `pipeline.quantize`."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles without the GIL, cached on disk where a cache folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no writable folder: compile anew in each process
        return numba.njit(nogil=True)(function)


@_jit
def histogram(pixels, shift):
    """Counts and sums of the colours in bins of side `2**shift`."""
    bits = np.uint32(8 - shift)
    size = 1 << (3 * (8 - shift))
    slot = np.zeros(size, np.int32)
    n = 0
    cells = np.empty(min(len(pixels), size), np.int32)
    for i in range(len(pixels)):
        key = (
            ((np.uint32(pixels[i, 0]) >> shift) << (2 * bits))
            | ((np.uint32(pixels[i, 1]) >> shift) << bits)
            | (np.uint32(pixels[i, 2]) >> shift)
        )
        if slot[key] == 0:
            cells[n] = key
            n += 1
        slot[key] += 1
    counts = np.zeros(n, np.int64)
    sums = np.zeros((n, 3), np.int64)
    for j in range(n):
        counts[j] = slot[cells[j]]
        slot[cells[j]] = j
    for i in range(len(pixels)):
        key = (
            ((np.uint32(pixels[i, 0]) >> shift) << (2 * bits))
            | ((np.uint32(pixels[i, 1]) >> shift) << bits)
            | (np.uint32(pixels[i, 2]) >> shift)
        )
        j = slot[key]
        sums[j, 0] += pixels[i, 0]
        sums[j, 1] += pixels[i, 1]
        sums[j, 2] += pixels[i, 2]
    return counts, sums


@_jit
def nearest(points, centres):
    """Index of the nearest centre of each point, the lowest at a tie; exact for integers."""
    labels = np.empty(len(points), np.uint8)
    for i in range(len(points)):
        best = np.inf
        for k in range(len(centres)):
            distance = 0.0
            for channel in range(3):
                distance += (np.float64(points[i, channel]) - centres[k, channel]) ** 2
            if distance < best:
                best = distance
                labels[i] = k
    return labels


@_jit
def cluster_sums(counts, sums, labels, k):
    """Weights (k,) and channel sums (k, 3) of the clusters."""
    weights = np.zeros(k, np.int64)
    totals = np.zeros((k, 3), np.int64)
    for i in range(len(labels)):
        weights[labels[i]] += counts[i]
        for channel in range(3):
            totals[labels[i], channel] += sums[i, channel]
    return weights, totals


@_jit
def pixel_sums(pixels, labels, k):
    """Pixel counts (k,) and channel sums (k, 3) of the clusters."""
    weights = np.zeros(k, np.int64)
    totals = np.zeros((k, 3), np.int64)
    for i in range(len(labels)):
        weights[labels[i]] += 1
        for channel in range(3):
            totals[labels[i], channel] += pixels[i, channel]
    return weights, totals


@_jit
def sum_of_squares(counts, means, labels, centres):
    """Sum of squared distances of each cluster's points to its centre, (k,)."""
    errors = np.zeros(len(centres))
    for i in range(len(labels)):
        for channel in range(3):
            difference = means[i, channel] - centres[labels[i], channel]
            errors[labels[i]] += counts[i] * difference * difference
    return errors
