"""What a user may choose: frozen dataclasses, validated when made.

`PictureOptions` holds all that decides a picture's bytes, and nothing else: it is written to
`preprocessing.json`, is part of the fingerprint, and serving repeats exactly it.
`JobOptions` holds the rest of a preprocessing run.
"""

import dataclasses
from typing import Any, Literal, get_args

Crop = Literal["none", "box"]
Decode = Literal["full", "scaled"]
Fit = Literal["stretch", "pad", "center_crop"]
Quantizer = Literal["fast", "quality", "sklearn"]
Encoding = Literal["indexed", "packed", "png", "rgb"]

MAX_COLORS = 256
MAX_PACKED_COLORS = 32
PACKED_ROWS = 8  # eight rows of 5-bit indices fill five rows of bytes


def _check_choice(flag: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"--{flag} is {value!r}; choose one of {', '.join(get_args(choices))}")


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """All that decides the bytes of a stored picture.

    Attributes:
        crop: `none`, or `box` to cut each picture to its annotated box before resizing.
        crop_margin: with `crop="box"`, context kept on each side, as a fraction of the box's side.
        image_size: side of the stored square in pixels; 0 keeps the original size (png and rgb).
        fit: how a rectangle becomes a square: `stretch`, `pad` (black bars) or `center_crop`.
        decode: `full`, or `scaled` to decode a JPEG that is far larger than the target at 1/2, 1/4
            or 1/8 of its side.
        colors: palette size, 2 to 256; 0 means no quantization (rgb only).
        quantizer: which k-means: `fast`, `quality`, or `sklearn` (the notebook's method).
        encoding: `indexed`, `packed` (five bits a pixel), `png` (palette PNG) or `rgb` (RGB PNG).

    Raises:
        ValueError: when made, if a value or a combination is impossible.
    """

    crop: Crop = "none"
    crop_margin: float = 0.0
    image_size: int = 256
    fit: Fit = "stretch"
    decode: Decode = "full"
    colors: int = 32
    quantizer: Quantizer = "fast"
    encoding: Encoding = "indexed"

    def __post_init__(self) -> None:
        _check_choice("crop", self.crop, Crop)
        _check_choice("fit", self.fit, Fit)
        _check_choice("decode", self.decode, Decode)
        _check_choice("quantizer", self.quantizer, Quantizer)
        _check_choice("encoding", self.encoding, Encoding)
        if not 0 <= self.crop_margin <= 1:
            raise ValueError(f"--crop_margin is {self.crop_margin}; it must lie between 0 and 1")
        if self.crop_margin and self.crop == "none":
            raise ValueError(
                f"--crop_margin is {self.crop_margin}, but nothing is cropped; add --crop=box"
            )
        if self.image_size < 0:
            raise ValueError(
                f"--image_size is {self.image_size}; it must be 0 (original size) or more"
            )
        if (self.colors == 0) != (self.encoding == "rgb"):
            raise ValueError(
                f"--colors={self.colors} does not go with --encoding={self.encoding}; "
                "rgb is the encoding of --colors=0 and of nothing else"
            )
        if self.colors != 0 and not 2 <= self.colors <= MAX_COLORS:
            raise ValueError(
                f"--colors is {self.colors}; it must be 2 to {MAX_COLORS}, or 0 for none"
            )
        if self.image_size == 0 and not self.is_png:
            raise ValueError(
                f"--image_size=0 keeps every picture's own size, but --encoding={self.encoding} "
                "stores one shape for all; use --encoding=png or give a size"
            )
        if self.encoding == "packed":
            if self.colors > MAX_PACKED_COLORS:
                raise ValueError(
                    f"--encoding=packed holds at most {MAX_PACKED_COLORS} colours, "
                    f"not {self.colors}; use --encoding=indexed"
                )
            if self.image_size % PACKED_ROWS:
                raise ValueError(
                    f"--encoding=packed needs an --image_size divisible by {PACKED_ROWS}, "
                    f"not {self.image_size}"
                )

    @property
    def is_png(self) -> bool:
        """Whether pictures are stored as PNG files rather than as arrays of fixed shape."""
        return self.encoding in ("png", "rgb")

    def to_json(self) -> dict[str, Any]:
        """Returns the options as a JSON object, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "PictureOptions":
        """Returns the options written by `to_json`; an unknown key is a TypeError."""
        return cls(**value)


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """What a preprocessing run reads, where it writes, and how much loss it accepts.

    Attributes:
        data_dir: folder of the pictures and annotations; local or any Beam file system.
        output_dir: folder of the shards; likewise.
        layout: `auto`, or a name of `pipeline.layouts.LAYOUTS`.
        examples_per_shard: mean number of records a shard.
        max_reject_fraction: share of pictures that may be missing or bad, 0 to 1.
        overwrite: whether to replace an earlier result with other options or input.

    Raises:
        ValueError: when made, if a value is impossible.
    """

    data_dir: str
    output_dir: str
    layout: str = "auto"
    examples_per_shard: int = 256
    max_reject_fraction: float = 0.01
    overwrite: bool = False

    def __post_init__(self) -> None:
        for flag in ("data_dir", "output_dir"):
            if not getattr(self, flag):
                raise ValueError(f"--{flag} is empty; give a folder")
        if self.examples_per_shard < 1:
            raise ValueError(
                f"--examples_per_shard is {self.examples_per_shard}; it must be 1 or more"
            )
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(
                f"--max_reject_fraction is {self.max_reject_fraction}; it must lie between 0 and 1"
            )
