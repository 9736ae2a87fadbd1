"""The TFRecord container: length, checksum, data, checksum, for each record.

Each checksum is a masked CRC-32C. Format: TensorFlow's documentation "TFRecord and
tf.train.Example". Beam's writer is private and its public sink chooses shards by itself; TFDS's
writer needs TensorFlow or array_record.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _LENGTH.size + _CHECKSUM.size
OVERHEAD_BYTES = HEADER_BYTES + _CHECKSUM.size


class CorruptRecordError(ValueError):
    """A file that is not a sequence of whole, unharmed records. The message gives the offset."""


class Record(NamedTuple):
    """A record and where it starts in its file, in bytes."""

    offset: int
    data: bytes


def _masked_checksum(data: bytes) -> int:
    checksum = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Returns `data` as one record of a TFRecord file."""
    length = _LENGTH.pack(len(data))
    return b"".join(
        (
            length,
            _CHECKSUM.pack(_masked_checksum(length)),
            data,
            _CHECKSUM.pack(_masked_checksum(data)),
        )
    )


def read(file: BinaryIO) -> Iterator[Record]:
    """Yields the records of a file opened at its start.

    Raises:
        CorruptRecordError: at the first record that is cut off or fails a checksum.
    """
    offset = 0
    while header := file.read(HEADER_BYTES):
        if len(header) < HEADER_BYTES:
            raise CorruptRecordError(f"cut off in the record header at offset {offset:,}")
        length = header[: _LENGTH.size]
        if _CHECKSUM.unpack(header[_LENGTH.size :])[0] != _masked_checksum(length):
            raise CorruptRecordError(f"wrong checksum of the record length at offset {offset:,}")
        size = _LENGTH.unpack(length)[0]
        body = file.read(size + _CHECKSUM.size)
        if len(body) < size + _CHECKSUM.size:
            raise CorruptRecordError(f"cut off in the record at offset {offset:,}")
        data = body[:size]
        if _CHECKSUM.unpack(body[size:])[0] != _masked_checksum(data):
            raise CorruptRecordError(f"wrong checksum of the record at offset {offset:,}")
        yield Record(offset, data)
        offset += size + OVERHEAD_BYTES
