"""Compiled kernels that count a picture's colours.

*Pixels* are uint8 (N, 3), contiguous. A *bin* is a cube of colours, 4 levels a side: its key is
`r >> 2 << 12 | g >> 2 << 6 | b >> 2`. *Moments* are float64 (n, 4), one row a point: weight and
the weighted sums of r, g and b. They hold integers below 2**53, so that sums are exact in any
order.
"""

from typing import Any

import numpy as np

from pipeline.compiled import FloatArray, U, UInt8Array, UInt32Array, entry, inner

BINS = 1 << 18
FULL = 1 << 6  # pixels; 3 * 64 < 2**8


@inner
def _bin_key(r: Any, g: Any, b: Any) -> Any:
    """Key of the bin of a colour, uint64."""
    return ((r >> U(2)) << U(12)) | ((g >> U(2)) << U(6)) | (b >> U(2))


@entry
def histogram(pixels: UInt8Array) -> tuple[UInt32Array, FloatArray]:
    """Returns the keys of the occupied bins, ascending uint32 (n,), and their moments (n, 4).

    A bin is one 32-bit word: its count in 7 bits and the sums of the lower two bits of r, g and b
    in 8 bits each. One addition a pixel does all. A word whose count reaches 64 is spilled to a
    list: 2 % of the additions at worst, and the table is half as large as one of 64-bit words,
    which took 1.4 times as long at 224 x 224.
    """
    table = np.zeros(BINS, np.uint32)
    spilled = np.empty((len(pixels) // FULL + 1, 2), np.uint32)
    spills = U(0)
    low = U(3)
    for i in range(U(len(pixels))):
        r, g, b = U(pixels[i, 0]), U(pixels[i, 1]), U(pixels[i, 2])
        key = _bin_key(r, g, b)
        word = U(table[key]) + (
            U(1) | ((r & low) << U(7)) | ((g & low) << U(15)) | ((b & low) << U(23))
        )
        if word & U(FULL):
            spilled[spills, 0] = key
            spilled[spills, 1] = word
            spills += U(1)
            word = U(0)
        table[key] = word
    for s in range(spills):  # a bin emptied by its last spill must still be found below
        if table[spilled[s, 0]] == 0:
            table[spilled[s, 0]] = spilled[s, 1]
            spilled[s, 1] = 0
    keys = _occupied(table)
    moments = np.zeros((len(keys), 4))
    for n in range(U(len(keys))):
        key = U(keys[n])
        _add_word(moments[n], key, U(table[key]))
        table[key] = n
    for s in range(spills):
        key = U(spilled[s, 0])
        _add_word(moments[U(table[key])], key, U(spilled[s, 1]))
    return keys, moments


@inner
def _occupied(table: UInt32Array) -> UInt32Array:
    """Indices of the words that are not 0, ascending, uint32 (n,); skips eight at once."""
    groups = np.empty(BINS >> 3, np.uint8)
    occupied = U(0)
    for group in range(U(BINS >> 3)):
        count = U(0)
        for place in range(U(8)):
            count += U(table[group * U(8) + place] != 0)
        groups[group] = count
        occupied += count
    keys = np.empty(occupied + U(1), np.uint32)  # the last key is written, then perhaps passed by
    n = U(0)
    for group in range(U(BINS >> 3)):
        if groups[group] == 0:
            continue
        for key in range(group * U(8), group * U(8) + U(8)):
            keys[n] = key
            n += U(table[key] != 0)
    return keys[:occupied]


@inner
def _add_word(row: FloatArray, key: Any, word: Any) -> None:
    """Adds a word of `histogram` to the moments of its bin, (4,)."""
    count = np.float64(word & U(0x7F))
    row[0] += count
    row[1] += count * np.float64((key >> U(12)) << U(2)) + np.float64(word >> U(7) & U(0xFF))
    row[2] += count * np.float64((key >> U(4)) & U(252)) + np.float64(word >> U(15) & U(0xFF))
    row[3] += count * np.float64((key << U(2)) & U(252)) + np.float64(word >> U(23))


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
