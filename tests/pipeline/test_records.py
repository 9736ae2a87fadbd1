import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import records
from pipeline.config import PictureOptions

CLASSES = ("Ram C/V Cargo Van Minivan 2012", "Audi TT Hatchback 2011")
BBOX = (0.125, 0.25, 0.5, 1.0)


def picture(size=16, colors=32, seed=0):
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, colors, (size, size), dtype=np.uint8)
    return indices, rng.integers(0, 256, (colors, 3), dtype=np.uint8)


@pytest.mark.parametrize("encoding", ["indexed", "packed", "png"])
def test_tfds_reads_back_what_went_in(encoding):
    options = PictureOptions(encoding=encoding, image_size=16)
    indices, palette = picture()
    data = records.Encoder(options, CLASSES).indexed("train/1", 1, BBOX, indices, palette)
    example = records.features(options, CLASSES).deserialize_example(data)
    assert (example["id"].numpy(), example["label"].numpy()) == (b"train/1", 1)
    np.testing.assert_array_equal(example["bbox"], np.float32(BBOX))
    if encoding == "png":
        np.testing.assert_array_equal(example["image"], palette[indices])
    else:
        stored = example["packed"].numpy() if encoding == "packed" else example["indices"].numpy()
        unpacked = records.unpack(stored) if encoding == "packed" else stored
        np.testing.assert_array_equal(unpacked, indices)
        np.testing.assert_array_equal(example["palette"], palette)


def test_rgb_is_stored_without_loss_and_at_any_size():
    options = PictureOptions(encoding="rgb", colors=0, image_size=0)
    image = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    data = records.Encoder(options, CLASSES).rgb("a", 0, BBOX, image)
    example = records.features(options, CLASSES).deserialize_example(data)
    np.testing.assert_array_equal(example["image"], image)


def test_plain_tensorflow_parses_a_batch_of_indexed_records():
    encoder = records.Encoder(PictureOptions(image_size=16), CLASSES)
    pictures = [picture(seed=seed) for seed in range(3)]
    batch = [encoder.indexed(f"{i}", 0, BBOX, *p) for i, p in enumerate(pictures)]
    fields = {name: tf.io.FixedLenFeature([], tf.string) for name in ("id", "indices", "palette")}
    parsed = tf.io.parse_example(tf.constant(batch), fields)
    indices = tf.reshape(tf.io.decode_raw(parsed["indices"], tf.uint8), [3, 16, 16])
    np.testing.assert_array_equal(indices, np.stack([indices for indices, _ in pictures]))


def test_decode_gives_the_fields_without_tensorflow():
    indices, palette = picture()
    encoder = records.Encoder(PictureOptions(image_size=16), CLASSES)
    fields = records.decode(encoder.indexed("train/1", 1, BBOX, indices, palette))
    assert fields == {
        "id": b"train/1",
        "label": 1,
        "bbox": list(BBOX),
        "indices": indices.tobytes(),
        "palette": palette.tobytes(),
    }


def test_decode_refuses_what_is_no_example():
    with pytest.raises(ValueError, match="not a tf.train.Example"):
        records.decode(b"garbage123")


BYTES_IN_A_NEW_PROCESS = """
import sys, numpy as np
from pipeline import records
from pipeline.config import PictureOptions
rng = np.random.default_rng(0)
indices = rng.integers(0, 32, (16, 16), dtype=np.uint8)
palette = rng.integers(0, 256, (32, 3), dtype=np.uint8)
encoder = records.Encoder(PictureOptions(image_size=16), ("a", "b"))
sys.stdout.buffer.write(encoder.indexed("x", 1, (0.0, 0.0, 1.0, 1.0), indices, palette))
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""


def test_every_process_writes_the_same_bytes_and_none_loads_tensorflow():
    written = {
        subprocess.run(
            [sys.executable, "-c", BYTES_IN_A_NEW_PROCESS],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(written) == 1
    assert len(written.pop()) > 256


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_packing_keeps_every_index_in_five_bits_a_pixel(blocks, width, seed):
    indices = np.random.default_rng(seed).integers(0, 32, (8 * blocks, width), dtype=np.uint8)
    planes = records.pack(indices)
    assert planes.shape == (5, blocks, width)
    assert planes.dtype == np.uint8
    np.testing.assert_array_equal(records.unpack(planes), indices)


def test_packing_puts_the_first_five_blocks_in_the_low_bits():
    indices = np.random.default_rng(0).integers(0, 32, (16, 3), dtype=np.uint8)
    low = records.pack(indices) & 31
    np.testing.assert_array_equal(low.reshape(10, 3), indices[:10])


def test_a_palette_png_holds_no_more_than_the_palette():
    indices, palette = picture(colors=16)
    with Image.open(io.BytesIO(records.palette_png(indices, palette))) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), indices)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette[indices])


def test_schema_is_what_tfds_would_build_for_supervised_training():
    options = PictureOptions(encoding="png", image_size=16)
    schema = records.features(options, CLASSES)
    assert isinstance(schema["image"], tfds.features.Image)
    assert schema["label"].names == list(CLASSES)
