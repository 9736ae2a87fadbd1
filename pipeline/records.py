"""The schema of a record, and one record from its parts and back.

Readers know the schema from `features.json` (tensorflow_datasets) and the records are plain
`tf.train.Example` messages, so any loader can read them. Palette and indices are stored as raw
bytes of a fixed shape, so that a reader can parse a whole batch at once.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from pipeline.config import PACKED_ROWS, PictureOptions

# Kept by hand: raise it with any change that gives other bytes for the same input and options.
FORMAT_VERSION = 1
DATASET_NAME = "stanford_cars"

UInt8 = npt.NDArray[np.uint8]
Bbox = tuple[float, float, float, float]


def features(options: PictureOptions, class_names: tuple[str, ...]) -> tfds.features.FeaturesDict:
    """Returns the schema of the records that `options` make."""
    size = options.image_size
    pictures: dict[str, Any]
    if options.is_png:
        shape = (size or None, size or None, 3)
        pictures = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    elif options.encoding == "packed":
        pictures = {"packed": _raw((5, size // PACKED_ROWS, size))}
    else:
        pictures = {"indices": _raw((size, size))}
    if not options.is_png:
        pictures["palette"] = _raw((options.colors, 3))
    return tfds.features.FeaturesDict(
        {
            **pictures,
            "id": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=list(class_names)),
            "bbox": tfds.features.BBoxFeature(),
        }
    )


def _raw(shape: tuple[int, ...]) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")


class Encoder:
    """Serializes records of one schema; equal parts give equal bytes in every process."""

    def __init__(self, options: PictureOptions, class_names: tuple[str, ...]) -> None:
        self._options = options
        self._features = features(options, class_names)
        self._serializer = ExampleSerializer(self._features.get_serialized_info())

    def indexed(self, id: str, label: int, bbox: Bbox, indices: UInt8, palette: UInt8) -> bytes:
        """Returns a record of a quantized picture.

        Args:
            id: the picture's id.
            label: 0-based class.
            bbox: (ymin, xmin, ymax, xmax), each 0 to 1.
            indices: uint8 (H, W), rows of `palette`.
            palette: uint8 (n, 3) for `png`, else (colors, 3).
        """
        if self._options.encoding == "packed":
            return self._serialize(id, label, bbox, packed=pack(indices), palette=palette)
        if self._options.encoding == "png":
            return self._serialize(id, label, bbox, image=palette_png(indices, palette))
        return self._serialize(id, label, bbox, indices=indices, palette=palette)

    def rgb(self, id: str, label: int, bbox: Bbox, image: UInt8) -> bytes:
        """Returns a record of a picture that was not quantized, uint8 (H, W, 3)."""
        return self._serialize(id, label, bbox, image=_png(Image.fromarray(image)))

    def _serialize(self, id: str, label: int, bbox: Bbox, **picture: UInt8 | bytes) -> bytes:
        example = {"id": id, "label": label, "bbox": tfds.features.BBox(*bbox), **picture}
        encoded = self._features.encode_example(example)
        # serialize_example() orders the fields anew in every process.
        message: bytes = self._serializer.get_tf_example(encoded).SerializeToString(
            deterministic=True
        )
        return message


def decode(data: bytes) -> dict[str, Any]:
    """Returns the fields of a serialized record by name.

    A field of another shape than this schema knows (one string, one integer, floats) is None.

    Raises:
        ValueError: if `data` is no `tf.train.Example`.
    """
    try:
        example = tf_example_pb2.Example.FromString(data)
    except DecodeError as error:
        raise ValueError("not a tf.train.Example") from error
    return {name: _value(field) for name, field in example.features.feature.items()}


def _value(field: tf_feature_pb2.Feature) -> bytes | int | list[float] | None:
    kind = field.WhichOneof("kind")
    if kind == "bytes_list" and len(field.bytes_list.value) == 1:
        return bytes(field.bytes_list.value[0])
    if kind == "int64_list" and len(field.int64_list.value) == 1:
        return int(field.int64_list.value[0])
    if kind == "float_list":
        return list(field.float_list.value)
    return None


def pack(indices: UInt8) -> UInt8:
    """Packs indices below 32 to five bits each.

    The rows are taken as eight blocks b0 to b7 of H/8 rows. Plane j of five holds bj in its low
    five bits; b5, b6 and b7 are split over the high three bits of the planes. So a chip unpacks
    with whole-array shifts and one concatenation, and no pixel crosses a row.

    Args:
        indices: uint8 (H, W), below 32, H divisible by 8.

    Returns:
        uint8 (5, H/8, W).
    """
    height, width = indices.shape
    b = indices.reshape(PACKED_ROWS, height // PACKED_ROWS, width)
    return np.stack(
        [
            b[0] | (b[5] & 7) << 5,
            b[1] | (b[5] >> 3) << 5 | (b[7] >> 3 & 1) << 7,
            b[2] | (b[6] & 7) << 5,
            b[3] | (b[6] >> 3) << 5 | (b[7] >> 4 & 1) << 7,
            b[4] | (b[7] & 7) << 5,
        ]
    )


def unpack(planes: UInt8) -> UInt8:
    """Returns the indices, uint8 (H, W), of what `pack` made, uint8 (5, H/8, W)."""
    p, high = planes & 31, planes >> 5
    b5 = high[0] | (high[1] & 3) << 3
    b6 = high[2] | (high[3] & 3) << 3
    b7 = high[4] | (high[1] >> 2) << 3 | (high[3] >> 2) << 4
    return np.concatenate([*p, b5, b6, b7]).astype(np.uint8)


def palette_png(indices: UInt8, palette: UInt8) -> bytes:
    """Returns a palette PNG of `indices`, uint8 (H, W), with `palette`, uint8 (n, 3)."""
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    return _png(image)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png", compress_level=6)
    return file.getvalue()
