"""What happens to a batch on the device before the network sees it: dense operations only.

Everything random about an example is a function of (seed, step, hash of its id), never of its row,
so a resumed run repeats it and the number of devices and hosts does not matter. Colours are
centred as in `trainer.palette`. Colour jitter acts on each colour alone, so it is applied to the
palette where there is one: a few rows instead of a picture.

Evaluation, prediction and export share `eval_pictures`.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from trainer import palette

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
MIX_GROUP = 8
_BETA_TABLE = 1025

# One constant per random quantity, folded into an example's key: another option switched on or off
# does not change what the others draw.
_CROP, _FLIP, _COLOR, _PALETTE_NOISE, _PIXEL_NOISE, _MIX = range(6)


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """How training pictures are varied. The defaults of `crop_area` … vary nothing.

    Attributes:
        crop_size: side of the picture that the network gets, in pixels.
        crop_area: least and largest share of the picture's area in a random crop.
        crop_aspect: largest aspect ratio of a crop, width to height; its inverse is the least.
        flip: whether half of the pictures are mirrored left to right.
        brightness: largest shift of all channels, as a share of the whole range of levels.
        contrast: colours are scaled about middle gray by 1 - contrast to 1 + contrast.
        saturation: colours are scaled about their gray by 1 - saturation to 1 + saturation.
        palette_noise: standard deviation, in levels of 256, of noise added to each palette entry.
        pixel_noise: the same for each pixel of the crop.
        mixup: alpha of the Beta distribution of mixup's weights; 0 for no mixup.
        cutmix: the same of cutmix's areas; with both, each picture gets one of them.

    Raises:
        ValueError: when made, if a value is impossible.
    """

    crop_size: int
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: float = 1.0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    palette_noise: float = 0.0
    pixel_noise: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise ValueError(f"crop_size is {self.crop_size}; it must be 1 or more")
        least, largest = self.crop_area
        if not 0 < least <= largest <= 1:
            raise ValueError(f"crop_area is {self.crop_area}; give 0 < least <= largest <= 1")
        if self.crop_aspect < 1:
            raise ValueError(f"crop_aspect is {self.crop_aspect}; it must be 1 or more")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        for name in ("palette_noise", "pixel_noise", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """How a stored picture becomes the network's input outside training.

    Attributes:
        resize: side to which the whole picture is resized, in pixels.
        crop_size: side of the centre of it that the network gets, at most `resize`.

    Raises:
        ValueError: when made, if a value is impossible.
    """

    resize: int
    crop_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.crop_size <= self.resize:
            raise ValueError(
                f"crop_size is {self.crop_size} and resize {self.resize}; "
                "a crop must be at least 1 pixel and at most the resized picture"
            )


def example_keys(seed: int | jax.Array, step: int | jax.Array, id_hash: jax.Array) -> jax.Array:
    """Returns a key per example, (B,), of the run's seed, the step and uint32 (B,) id hashes."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, id_hash)


def train_pictures(
    batch: Mapping[str, jax.Array],
    options: AugmentOptions,
    keys: jax.Array,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns varied pictures: jitter, expansion, random crop, flip, noise; not mixed yet.

    Args:
        batch: as `trainer.data` delivers it: `indices` uint8 (B, S, S) or `packed` uint8
            (B, 5, S/8, S), with `palette` uint8 (B, K, 3); or `image` uint8 (B, S, S, 3).
        options: how to vary them.
        keys: (B,), from `example_keys`.
        dtype: of expansion, crop and result, float32 or bfloat16.

    Returns:
        Centred colours, (B, crop_size, crop_size, 3) of `dtype`.
    """
    colors = palette.centre(batch["image"] if "image" in batch else batch["palette"])
    if options.palette_noise and "image" not in batch:
        colors += _noise(_fold(keys, _PALETTE_NOISE), colors.shape[1:], options.palette_noise)
    colors = jitter(colors, options, _fold(keys, _COLOR))
    pictures = _expanded(batch, colors, dtype)
    pictures = random_resized_crop(pictures, options, _fold(keys, _CROP))
    if options.flip:
        mirrored = jax.vmap(jax.random.bernoulli)(_fold(keys, _FLIP))
        pictures = jnp.where(mirrored[:, None, None, None], pictures[:, :, ::-1], pictures)
    if options.pixel_noise:
        noise = _noise(_fold(keys, _PIXEL_NOISE), pictures.shape[1:], options.pixel_noise)
        pictures += noise.astype(dtype)
    return pictures


def eval_pictures(
    batch: Mapping[str, jax.Array],
    options: EvalOptions,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns the centre of each resized picture: what evaluation, prediction and export feed.

    Args:
        batch: as for `train_pictures`.
        options: sizes.
        dtype: float32 or bfloat16.

    Returns:
        Centred colours, (B, crop_size, crop_size, 3) of `dtype`.
    """
    colors = palette.centre(batch["image"] if "image" in batch else batch["palette"])
    pictures = _expanded(batch, colors, dtype)
    side = pictures.shape[1]
    if options.resize == side:
        edge = (side - options.crop_size) // 2
        return pictures[:, edge : edge + options.crop_size, edge : edge + options.crop_size]
    count = pictures.shape[0]
    scale = jnp.full((count, 2), options.resize / side)
    shift = jnp.full((count, 2), -((options.resize - options.crop_size) // 2), jnp.float32)
    return _resample(pictures, scale, shift, options.crop_size)


def jitter(colors: jax.Array, options: AugmentOptions, keys: jax.Array) -> jax.Array:
    """Varies contrast, brightness and saturation of each example, in this order.

    Args:
        colors: centred, float (B, …, 3): palettes or pictures, it makes no difference.
        options: the ranges.
        keys: (B,).

    Returns:
        Centred colours, same shape, clipped to [-1, 1].
    """
    if not (options.brightness or options.contrast or options.saturation):
        return colors
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=-1.0))(keys)
    draws = draws.reshape(-1, *[1] * (colors.ndim - 2), 3)
    contrast, brightness, saturation = (draws[..., i : i + 1] for i in range(3))
    colors = colors * (1 + options.contrast * contrast) + 2 * options.brightness * brightness
    gray = (colors * jnp.array(LUMA)).sum(axis=-1, keepdims=True)
    colors = gray + (colors - gray) * (1 + options.saturation * saturation)
    return jnp.clip(colors, -1.0, 1.0)


def random_resized_crop(pictures: jax.Array, options: AugmentOptions, keys: jax.Array) -> jax.Array:
    """Cuts a random rectangle from each picture and resizes it, antialiased, to a square.

    Area and logarithm of the aspect ratio are uniform in their ranges, then the place is; a side
    longer than the picture's is cut to it.

    Args:
        pictures: (B, S, S, 3).
        options: ranges and size.
        keys: (B,).

    Returns:
        (B, crop_size, crop_size, 3), same dtype.
    """
    side, size = pictures.shape[1], options.crop_size
    if options.crop_area == (1.0, 1.0) and options.crop_aspect == 1 and size == side:
        return pictures
    draws = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)
    least, largest = options.crop_area
    area = least + (largest - least) * draws[:, 0]
    root_aspect = jnp.exp((draws[:, 1] - 0.5) * math.log(options.crop_aspect))
    height_width = jnp.stack([1 / root_aspect, root_aspect], axis=1)
    extent = jnp.minimum(side * jnp.sqrt(area)[:, None] * height_width, side)
    first = draws[:, 2:] * (side - extent)
    scale = size / extent
    return _resample(pictures, scale, -first * scale, size)


def mix(
    pictures: jax.Array,
    targets: jax.Array,
    options: AugmentOptions,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each picture and its target with those of a partner (mixup) or pastes a part (cutmix).

    Partners are found in fixed groups of 8 rows that follow each other, each row with its mirror
    image in the group; so no device needs another's pictures as long as it holds a multiple of 8
    rows.

    Args:
        pictures: (B, T, T, 3).
        targets: float (B, C), a distribution per row.
        options: `mixup` and `cutmix`, see there; Zhang et al. 2018 and Yun et al. 2019.
        keys: (B,), from `example_keys`.

    Returns:
        Mixed pictures and targets, shapes and dtypes as given.

    Raises:
        ValueError: if 8 does not divide B.
    """
    if not options.mixes:
        return pictures, targets
    rows = pictures.shape[0]
    if rows % MIX_GROUP:
        raise ValueError(
            f"a batch of {rows} rows does not divide into groups of {MIX_GROUP}; "
            f"use a multiple of {MIX_GROUP}, or neither mixup nor cutmix"
        )
    draws = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(_fold(keys, _MIX))
    both = options.mixup > 0 and options.cutmix > 0
    pastes = draws[:, 0] < 0.5 if both else jnp.full(rows, options.cutmix > 0)
    own = jnp.where(pastes, _beta(draws[:, 1], options.cutmix), _beta(draws[:, 1], options.mixup))
    keep = jnp.broadcast_to(own[:, None, None], pictures.shape[:3])
    if options.cutmix:
        outside = 1.0 - _boxes(pictures.shape[1], own, draws[:, 2:])
        keep = jnp.where(pastes[:, None, None], outside, keep)
    # The share of the target is that of the pixels, also where a box was cut off by the edge.
    share = keep.mean(axis=(1, 2))[:, None]
    keep = keep[..., None].astype(pictures.dtype)
    return (
        pictures * keep + _partner(pictures) * (1 - keep),
        (targets * share + _partner(targets) * (1 - share)).astype(targets.dtype),
    )


def _expanded(
    batch: Mapping[str, jax.Array], colors: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Returns pictures (B, S, S, 3) of centred colours: pixels already, or palettes."""
    if "image" in batch:
        return colors.astype(dtype)
    indices = palette.unpack(batch["packed"]) if "packed" in batch else batch["indices"]
    return palette.expand(indices, colors, dtype)


def _fold(keys: jax.Array, quantity: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, quantity)


def _noise(keys: jax.Array, shape: tuple[int, ...], levels: float) -> jax.Array:
    """Returns Gaussian noise, float32 (B, *shape), its deviation in levels of 256."""
    normal = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return normal * (levels / palette.CENTRE)


def _resample(pictures: jax.Array, scale: jax.Array, shift: jax.Array, size: int) -> jax.Array:
    """Returns (B, size, size, 3): pixel p of a picture moves to scale * p + shift; both (B, 2)."""

    def one(picture: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        shape = (size, size, picture.shape[-1])
        return jax.image.scale_and_translate(picture, shape, (0, 1), scale, shift, "linear")

    return jax.vmap(one)(pictures, scale, shift)


def _partner(rows: jax.Array) -> jax.Array:
    """Returns each row's partner's row."""
    groups = rows.reshape(-1, MIX_GROUP, *rows.shape[1:])
    return groups[:, ::-1].reshape(rows.shape)


def _beta(uniform: jax.Array, alpha: float) -> jax.Array:
    """Returns Beta(alpha, alpha) variates of uniform ones, by a table of quantiles.

    `jax.random.beta` loops until the last row of the batch accepts, which over devices is a
    collective in each turn of the loop.
    """
    if not alpha:
        return jnp.ones_like(uniform)
    grid = np.linspace(0, 1, _BETA_TABLE)
    quantiles = scipy.special.betaincinv(alpha, alpha, grid).astype(np.float32)
    place = uniform * (_BETA_TABLE - 1)
    index = jnp.minimum(place.astype(jnp.int32), _BETA_TABLE - 2)
    lower, upper = jnp.asarray(quantiles)[index], jnp.asarray(quantiles)[index + 1]
    return lower + (upper - lower) * (place - index)


def _boxes(side: int, own: jax.Array, centres: jax.Array) -> jax.Array:
    """Returns masks, float32 (B, side, side), 1 in a box of 1 - own of the area before the edge.

    Args:
        side: of the picture in pixels.
        own: share of the picture to keep, (B,).
        centres: of the boxes as shares of the side, (B, 2).
    """
    half = 0.5 * jnp.sqrt(1 - own)[:, None, None]
    pixels = (jnp.arange(side) + 0.5) / side
    inside = jnp.abs(pixels - centres[:, :, None]) < half  # (B, 2, side)
    return (inside[:, 0, :, None] & inside[:, 1, None, :]).astype(jnp.float32)
