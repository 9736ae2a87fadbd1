"""Indices and palettes to pictures, on the device.

Colours here are *centred*: (v - 128) / 128 of a level v of 0 to 255, so in [-1, 1). Every level is
then exact in bfloat16, and one that jitter has moved is rounded by at most a quarter of a level; of
colours between 0 and 1 the lighter half would be off by up to half a level. On a CPU float32
pictures come back exactly. That proves nothing for a TPU, which by default multiplies float32
matrices in bfloat16: there jittered colours are rounded as said, whatever dtype is asked for.

TPUs gather slowly and multiply fast: there colours are fetched as the product of one-hot indices
and the palette. Up to 64 colours that is one product; more are a sum over tables of 64, because the
one-hot of 256 costs more than the gather it replaces. On a CPU the gather is 40 times faster, and
gives the same bits.
"""

import jax
import jax.numpy as jnp

CENTRE = 128.0
TABLE_COLORS = 64


def centre(levels: jax.Array) -> jax.Array:
    """Returns centred float32 colours of uint8 levels, same shape."""
    return (levels.astype(jnp.float32) - CENTRE) / CENTRE


def unpack(packed: jax.Array) -> jax.Array:
    """Unpacks five-bit indices with shifts and masks.

    The low five bits of the planes are row blocks 0 to 4 of the picture; blocks 5 to 7 are spread
    over the high three bits.

    Args:
        packed: uint8 (B, 5, H/8, W).

    Returns:
        Indices, uint8 (B, H, W), 0 to 31.
    """
    high = packed >> 5
    b5 = high[:, 0] | (high[:, 1] & 3) << 3
    b6 = high[:, 2] | (high[:, 3] & 3) << 3
    b7 = high[:, 4] | (high[:, 1] >> 2) << 3 | (high[:, 3] >> 2) << 4
    blocks = jnp.concatenate([packed & 31, jnp.stack([b5, b6, b7], axis=1)], axis=1)
    batch, count, rows, width = blocks.shape
    return blocks.reshape(batch, count * rows, width)


def expand(
    indices: jax.Array, palette: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    """Returns the pictures of indices and palettes: on a CPU by gather, else by one-hot product.

    Args:
        indices: uint8 (B, H, W), each below K.
        palette: (B, K, 3): uint8 levels, or floating-point colours, centred already.
        dtype: of the product and the result, float32 or bfloat16.

    Returns:
        Centred colours, (B, H, W, 3) of `dtype`.
    """
    colors = centre(palette) if palette.dtype == jnp.uint8 else palette
    # Chosen when lowered, by the platform lowered for: a compilation for a TPU gets the product,
    # also on a machine that has only a CPU.
    return jax.lax.platform_dependent(
        indices, colors.astype(dtype), cpu=expand_by_gather, default=expand_by_product
    )


def expand_by_product(indices: jax.Array, colors: jax.Array) -> jax.Array:
    """Returns (B, H, W, 3) of indices uint8 (B, H, W) and colours (B, K, 3), as matrix products."""
    dtype = colors.dtype
    pictures = jnp.zeros((), dtype)
    for start in range(0, colors.shape[1], TABLE_COLORS):
        table = colors[:, start : start + TABLE_COLORS]
        entries = jnp.arange(start, start + table.shape[1], dtype=jnp.int32)
        one_hot = (indices[..., None].astype(jnp.int32) == entries).astype(dtype)
        # Each sum has one term that is not zero, so no wider accumulator is needed.
        pictures += jnp.einsum("bhwk,bkc->bhwc", one_hot, table, preferred_element_type=dtype)
    return pictures


def expand_by_gather(indices: jax.Array, colors: jax.Array) -> jax.Array:
    """Returns (B, H, W, 3) of indices uint8 (B, H, W) and colours (B, K, 3), by look-up."""
    batch, height, width = indices.shape
    flat = indices.reshape(batch, height * width, 1).astype(jnp.int32)
    return jnp.take_along_axis(colors, flat, axis=1).reshape(batch, height, width, 3)
