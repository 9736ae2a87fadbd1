import io
import struct

import pytest
import tensorflow as tf

from pipeline import tfrecord

DATA = [b"", b"a", b"hello" * 1000, bytes(range(256))]
FILE = b"".join(map(tfrecord.frame, DATA))


def test_tensorflow_reads_what_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(FILE)
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == DATA


def test_what_tensorflow_writes_is_read(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "file")) as writer:
        for data in DATA:
            writer.write(data)
    with (tmp_path / "file").open("rb") as file:
        records = list(tfrecord.read(file))
    assert [record.data for record in records] == DATA
    sizes = [len(data) + tfrecord.OVERHEAD_BYTES for data in DATA]
    assert [record.offset for record in records] == [sum(sizes[:i]) for i in range(len(DATA))]


@pytest.mark.parametrize("position", [0, 7, 8, 11, 12, 16, 17, 20, 33, len(FILE) - 1])
def test_a_flipped_bit_anywhere_is_found(position):
    harmed = bytearray(FILE)
    harmed[position] ^= 4
    with pytest.raises(tfrecord.CorruptRecordError, match="offset"):
        list(tfrecord.read(io.BytesIO(bytes(harmed))))


@pytest.mark.parametrize("length", [1, 11, 12, 15, 17, len(FILE) - 1])
def test_a_file_cut_off_names_the_offset(length):
    with pytest.raises(tfrecord.CorruptRecordError, match="cut off .* at offset"):
        list(tfrecord.read(io.BytesIO(FILE[:length])))


def test_a_length_beyond_the_file_does_not_allocate_it():
    length = struct.pack("<Q", 1 << 60)
    with pytest.raises(tfrecord.CorruptRecordError, match="checksum of the record length"):
        list(tfrecord.read(io.BytesIO(length + b"\0\0\0\0" + b"x" * 99)))
