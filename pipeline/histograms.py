"""Compiled kernels that count a picture's colours.

*Pixels* are uint8 (N, 3), contiguous. A *bin* is a cube of colours, 4 levels a side: its key is
`r >> 2 << 12 | g >> 2 << 6 | b >> 2`. *Moments* are float64 (n, 4), one row a point: weight and
the weighted sums of r, g and b. They hold integers below 2**53, so that sums are exact in any
order.
"""

from typing import Any

import numpy as np

from pipeline.compiled import FloatArray, U, UInt8Array, UInt32Array, UInt64Array, entry, inner

BINS = 1 << 18


@inner
def _bin_key(r: Any, g: Any, b: Any) -> Any:
    """Key of the bin of a colour, uint64."""
    return ((r >> U(2)) << U(12)) | ((g >> U(2)) << U(6)) | (b >> U(2))


@entry
def histogram(pixels: UInt8Array) -> tuple[UInt32Array, FloatArray]:
    """Returns the keys of the occupied bins, ascending uint32 (n,), and their moments (n, 4).

    A bin is one 64-bit word, four fields of 16 bits: its count and the sums of the lower two bits
    of r, g and b. One addition a pixel does all; a word is spilled to a list long before the count
    reaches the fields' limit (3 * 2**14 < 2**16).
    """
    table = np.zeros(BINS, np.uint64)
    spilled = np.empty((len(pixels) // (1 << 14) + 1, 2), np.uint64)
    spills = U(0)
    low = U(3)
    for i in range(U(len(pixels))):
        r, g, b = U(pixels[i, 0]), U(pixels[i, 1]), U(pixels[i, 2])
        key = _bin_key(r, g, b)
        word = table[key] + (
            U(1) | ((r & low) << U(16)) | ((g & low) << U(32)) | ((b & low) << U(48))
        )
        if word & U(1 << 14):
            spilled[spills, 0] = key
            spilled[spills, 1] = word
            spills += U(1)
            word = U(0)
        table[key] = word
    for s in range(spills):  # a bin emptied by its last spill must still be found below
        if table[spilled[s, 0]] == 0:
            table[spilled[s, 0]] = spilled[s, 1]
            spilled[s, 1] = U(0)
    return _unpack(table, spilled[:spills])


@inner
def _unpack(table: UInt64Array, spilled: UInt64Array) -> tuple[UInt32Array, FloatArray]:
    """Keys and moments of the non-empty words of `table`, with the spilled words added."""
    occupied = U(0)
    for key in range(U(BINS)):
        occupied += U(table[key] != 0)
    keys = np.empty(occupied, np.uint32)
    moments = np.empty((occupied, 4))
    field = U(0xFFFF)
    n = U(0)
    for key in range(U(BINS)):
        word = table[key]
        if word == 0:
            continue
        keys[n] = key
        count = np.float64(word & field)
        moments[n, 0] = count
        moments[n, 1] = count * np.float64((key >> U(12)) << U(2)) + (word >> U(16) & field)
        moments[n, 2] = count * np.float64((key >> U(4)) & U(252)) + (word >> U(32) & field)
        moments[n, 3] = count * np.float64((key << U(2)) & U(252)) + (word >> U(48))
        table[key] = n
        n += U(1)
    for s in range(U(len(spilled))):
        key, word = spilled[s, 0], spilled[s, 1]
        row = moments[table[key]]
        count = np.float64(word & field)
        row[0] += count
        row[1] += count * np.float64((key >> U(12)) << U(2)) + (word >> U(16) & field)
        row[2] += count * np.float64((key >> U(4)) & U(252)) + (word >> U(32) & field)
        row[3] += count * np.float64((key << U(2)) & U(252)) + (word >> U(48))
    return keys, moments


@entry
def colour_moments(pixels: UInt8Array, keys: UInt32Array) -> FloatArray:
    """Returns the moments of the distinct colours, (n, 4), ordered by bin, then by lower bits.

    Memory: 256 bytes a bin, so call it where bins are few.
    """
    rank = np.zeros(BINS, np.uint32)
    for j in range(U(len(keys))):
        rank[keys[j]] = j
    low = U(3)
    counts = np.zeros(len(keys) << 6, np.uint32)
    for i in range(U(len(pixels))):
        r, g, b = U(pixels[i, 0]), U(pixels[i, 1]), U(pixels[i, 2])
        lower = ((r & low) << U(4)) | ((g & low) << U(2)) | (b & low)
        counts[(U(rank[_bin_key(r, g, b)]) << U(6)) | lower] += np.uint32(1)
    distinct = U(0)
    for j in range(U(len(counts))):
        distinct += U(counts[j] != 0)
    moments = np.empty((distinct, 4))
    n = U(0)
    for j in range(U(len(counts))):
        if counts[j]:
            key, weight = U(keys[j >> U(6)]), np.float64(counts[j])
            moments[n, 0] = weight
            moments[n, 1] = weight * np.float64(((key >> U(12)) << U(2)) | (j >> U(4) & low))
            moments[n, 2] = weight * np.float64((key >> U(4) & U(252)) | (j >> U(2) & low))
            moments[n, 3] = weight * np.float64((key << U(2) & U(252)) | (j & low))
            n += U(1)
    return moments


@entry
def coarsen(keys: UInt32Array, moments: FloatArray) -> tuple[FloatArray, UInt32Array]:
    """Merges bins of 4 levels a side to bins of 8.

    Returns:
        moments: of the coarse bins, (m, 4).
        parents: the row of the coarse bin that holds each fine one, uint32 (n,).
    """
    rank = np.zeros(BINS >> 3, np.int32)  # row + 1; 0 for none
    coarse = np.zeros((len(moments), 4))
    parents = np.empty(len(moments), np.uint32)
    n = 0
    for j in range(U(len(keys))):
        key = keys[j]
        parent = ((key >> 13) << 10) | (((key >> 7) & 31) << 5) | ((key >> 1) & 31)
        row = rank[parent] - 1
        if row < 0:
            row = n
            n += 1
            rank[parent] = n
        parents[j] = row
        for field in range(4):
            coarse[row, field] += moments[j, field]
    return coarse[:n].copy(), parents
