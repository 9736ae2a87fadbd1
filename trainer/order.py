"""Which record comes when: a function of (seed, epoch, stream) and nothing else.

The N records of a split are one sequence, in shard order, cut into V equal pieces (*streams*). A
global batch holds equal parts of all streams, one stream after the other, and host h of H owns
V / H streams, from h V / H on. So the global batches are the same, row by row, for any number of
hosts that divides V, and there may be fewer files than hosts. Inside an epoch a stream is
reordered:

1. its runs of consecutive records are permuted and the result is rotated by a random number of
   records, so that in each epoch others are neighbours, and others are left over at the end;
2. it is cut into windows, and each window is shuffled by a seed of its own.

Nothing is carried from one window to the next, so a run resumes by computing where it was, and
replays one window at most. Shards hold their records in the order of a hash, which has mixed the
classes already; that is why windows far smaller than an epoch are enough.
"""

import dataclasses

import numpy as np

# (shard, first record, number of records): int64 (n, 3), one row per run of consecutive records.
Segments = np.ndarray

_WINDOW_RECORDS = 1024  # of all streams together: 67 MB of 256 x 256 pictures
_MIN_WINDOW = 64
_MAX_SEED = 1 << 62  # leaves room to add the number of a window


@dataclasses.dataclass(frozen=True)
class RecordOrder:
    """Which records each stream delivers, and in which order.

    Attributes:
        shard_lengths: records in each shard.
        streams: number of streams.
        used: records of each stream that an epoch uses; the rest of the stream is left out.
        seed: of the run.
    """

    shard_lengths: tuple[int, ...]
    streams: int
    used: int
    seed: int

    @property
    def window(self) -> int:
        """Records in a window: a function of the number of streams, as the order depends on it."""
        return max(_MIN_WINDOW, _WINDOW_RECORDS // self.streams)

    def stream(self, stream: int) -> Segments:
        """Returns all records of a stream, in shard order."""
        lengths = np.array(self.shard_lengths, np.int64)
        whole = np.stack([np.arange(len(lengths)), np.zeros_like(lengths), lengths], axis=1)
        total = int(lengths.sum())
        return cut(whole, stream * total // self.streams, (stream + 1) * total // self.streams)

    def epoch(self, stream: int, epoch: int, skip: int) -> tuple[Segments, int]:
        """Returns what a stream delivers in an epoch, in the order before windows are shuffled.

        Args:
            stream: number of the stream.
            epoch: number of the epoch.
            skip: whole windows to leave out at the start of the epoch.

        Returns:
            The records, and the seed of the first of their windows; each next one's is one more.
        """
        rng = np.random.default_rng([self.seed, epoch, stream])
        runs = rng.permutation(self.stream(stream))
        total = int(runs[:, 2].sum())
        turn = int(rng.integers(total))
        turned = np.concatenate([cut(runs, turn, total), cut(runs, 0, turn)])
        seed = int(rng.integers(_MAX_SEED)) + skip
        return cut(turned, skip * self.window, self.used), seed


def cut(segments: Segments, start: int, stop: int) -> Segments:
    """Returns records `start` to `stop` of the sequence that segments stand for."""
    shard, first, count = segments.T
    begins = np.cumsum(count) - count
    skip = np.clip(start - begins, 0, count)
    keep = np.clip(stop - begins, skip, count) - skip
    kept = np.stack([shard, first + skip, keep], axis=1)
    return kept[keep > 0]
