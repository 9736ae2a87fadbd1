import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.config import PictureOptions
from pipeline.convert import Converter
from pipeline.images import prepare
from pipeline.listing import CarImage
from pipeline.quantize import quantize
from pipeline.records import decode, unpack
from pipeline.rejects import BadImageError
from tests.pipeline import folders

IMAGE = CarImage("train/1", "train", "", "", 1, (3, 4, 30, 20), 0, 0.0)
DATA = folders.jpeg(seed=1)


def convert(data=DATA, image=IMAGE, **options):
    made = PictureOptions(**{"image_size": 16, **options})
    converted = Converter(made, folders.CLASSES)(image, data)
    return made, converted, decode(converted.record)


@pytest.mark.parametrize("encoding", ["indexed", "packed"])
@pytest.mark.parametrize("crop", ["none", "box"])
def test_a_record_holds_what_the_steps_make_one_by_one(encoding, crop):
    options, converted, fields = convert(encoding=encoding, crop=crop)
    picture = prepare(DATA, IMAGE.box, options)
    indices, palette = quantize(picture.rgb, 32)
    stored = np.frombuffer(fields["packed" if encoding == "packed" else "indices"], np.uint8)
    stored = unpack(stored.reshape(5, 2, 16)) if encoding == "packed" else stored.reshape(16, 16)
    np.testing.assert_array_equal(stored, indices)
    np.testing.assert_array_equal(
        np.frombuffer(fields["palette"], np.uint8).reshape(32, 3)[: len(palette)], palette
    )
    assert (fields["id"], fields["label"]) == (b"train/1", 1)
    np.testing.assert_array_equal(fields["bbox"], np.float32(picture.bbox))
    np.testing.assert_array_equal(converted.stored, palette[indices])
    np.testing.assert_array_equal(converted.prepared, picture.rgb)
    assert converted.content_hash == picture.content_hash
    used = len(np.unique(converted.stored.reshape(-1, 3), axis=0))
    assert converted.statistics.colors == {used: 1}


def test_a_short_palette_is_padded_for_arrays_and_not_for_png():
    flat = io.BytesIO()
    Image.new("RGB", (20, 10), (10, 20, 30)).save(flat, "png")
    _, _, fields = convert(flat.getvalue())
    assert fields["palette"] == bytes([10, 20, 30] * 32)
    _, _, fields = convert(flat.getvalue(), encoding="png")
    with Image.open(io.BytesIO(fields["image"])) as image:
        assert (image.mode, len(image.getpalette())) == ("P", 3)


@pytest.mark.parametrize(
    ("options", "mode"), [({"encoding": "png"}, "P"), ({"encoding": "rgb", "colors": 0}, "RGB")]
)
def test_a_png_shows_the_stored_pixels(options, mode):
    _, converted, fields = convert(**options)
    with Image.open(io.BytesIO(fields["image"])) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), converted.stored)


def test_statistics_are_of_source_and_result():
    _, converted, _ = convert()
    statistics = converted.statistics
    assert (statistics.pictures, statistics.labels) == (1, {1: 1})
    assert (statistics.source_bytes, statistics.source_pixels) == (len(DATA), 40 * 30)
    assert statistics.stored_pixels == 16 * 16
    difference = converted.prepared.astype(int) - converted.stored
    assert statistics.squared_error == (difference**2).sum() > 0


def test_a_picture_that_is_not_quantized_has_no_error_and_no_colours():
    _, converted, _ = convert(encoding="rgb", colors=0)
    assert converted.stored is converted.prepared
    assert (converted.statistics.exact, converted.statistics.colors) == (1, {})


def test_the_quantizer_and_its_colours_are_those_of_the_options():
    images = {
        (quantizer, colors): convert(quantizer=quantizer, colors=colors)[1].stored.tobytes()
        for quantizer in ("fast", "sklearn")
        for colors in (4, 8)
    }
    assert len(set(images.values())) == 4


def test_equal_input_gives_equal_bytes_and_the_label_is_no_pixel():
    _, one, _ = convert()
    _, two, _ = convert()
    _, other, _ = convert(image=dataclasses.replace(IMAGE, label=2))
    assert one.record == two.record != other.record
    assert one.content_hash == other.content_hash


def test_what_is_no_picture_is_refused():
    with pytest.raises(BadImageError):
        convert(b"no picture")
