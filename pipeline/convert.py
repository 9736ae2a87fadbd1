"""One picture file to one record: prepare, quantize, encode, and count what was done."""

import dataclasses

import numpy as np

from pipeline.config import PictureOptions
from pipeline.images import Picture, prepare
from pipeline.listing import CarImage
from pipeline.quantize import pad_palette, quantize
from pipeline.records import Encoder, UInt8
from pipeline.statistics import Statistics, of_picture


@dataclasses.dataclass(frozen=True)
class Converted:
    """A finished picture.

    Attributes:
        record: the serialized `tf.train.Example`.
        prepared: uint8 (H, W, 3), as it went into the quantizer.
        stored: uint8 (H, W, 3), as a reader of the record sees it.
        statistics: of this one picture.
        content_hash: equal for pictures of equal pixels.
    """

    record: bytes
    prepared: UInt8
    stored: UInt8
    statistics: Statistics
    content_hash: str


class Converter:
    """Converts pictures under one set of options. Holds the schema, nothing that changes."""

    def __init__(self, options: PictureOptions, class_names: tuple[str, ...]) -> None:
        self._options = options
        self._encoder = Encoder(options, class_names)

    def __call__(self, image: CarImage, data: bytes) -> Converted:
        """Converts the content of one picture file.

        Raises:
            BadImageError: if it will never be a picture.
        """
        picture = prepare(data, image.box, self._options)
        if self._options.encoding == "rgb":
            record = self._encoder.rgb(image.id, image.label, picture.bbox, picture.rgb)
            return self._converted(image, data, picture, record, None, None)
        indices, palette = quantize(
            picture.rgb, self._options.colors, method=self._options.quantizer
        )
        stored_palette = (
            palette if self._options.is_png else pad_palette(palette, self._options.colors)
        )
        record = self._encoder.indexed(image.id, image.label, picture.bbox, indices, stored_palette)
        stored = np.take(palette, indices, axis=0)
        # Every entry of a palette is in use: counting colours again would cost 1 ms.
        return self._converted(image, data, picture, record, stored, len(palette))

    def _converted(
        self,
        image: CarImage,
        data: bytes,
        picture: Picture,
        record: bytes,
        stored: UInt8 | None,
        colors: int | None,
    ) -> Converted:
        statistics = of_picture(
            label=image.label,
            source_bytes=len(data),
            source_size=picture.source_size,
            prepared=picture.rgb,
            stored=stored,
            colors=colors,
        )
        return Converted(
            record=record,
            prepared=picture.rgb,
            stored=picture.rgb if stored is None else stored,
            statistics=statistics,
            content_hash=picture.content_hash,
        )
