"""Expansion against NumPy's fancy indexing, unpacking against packing; which operation where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.trainer import shards
from trainer import palette


def draw(colors, batch=3, height=16, width=12, seed=0):
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, colors, (batch, height, width), np.uint8)
    levels = rng.integers(0, 256, (batch, colors, 3), np.uint8)
    return indices, levels, np.stack([rows[i] for rows, i in zip(levels, indices, strict=True)])


@pytest.mark.parametrize(("height", "width"), [(8, 1), (16, 12), (224, 224)])
def test_unpack_is_the_inverse_of_packing(height, width):
    indices = draw(32, height=height, width=width)[0]
    packed = np.stack([shards.pack(one) for one in indices])
    unpacked = jax.jit(palette.unpack)(packed)
    assert unpacked.dtype == jnp.uint8
    np.testing.assert_array_equal(unpacked, indices)


def test_unpack_of_known_bits():
    packed = np.zeros((1, 5, 1, 1), np.uint8)
    for plane, bit, block, value in [
        (0, 0, 0, 1), (4, 4, 4, 16), (0, 5, 5, 1), (0, 7, 5, 4), (1, 5, 5, 8), (1, 6, 5, 16),
        (2, 5, 6, 1), (3, 6, 6, 16), (4, 5, 7, 1), (4, 7, 7, 4), (1, 7, 7, 8), (3, 7, 7, 16),
    ]:  # fmt: skip
        packed[:] = 0
        packed[0, plane] = 1 << bit
        expected = np.zeros(8, np.uint8)
        expected[block] = value
        np.testing.assert_array_equal(palette.unpack(packed)[0, :, 0], expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("colors", [1, 2, 32, 63, 64, 65, 128, 130, 256])
@pytest.mark.parametrize("operation", [palette.expand_by_product, palette.expand_by_gather])
def test_levels_come_back_exactly(operation, colors, dtype):
    indices, levels, expected = draw(colors)
    pictures = operation(jnp.asarray(indices), palette.centre(jnp.asarray(levels)).astype(dtype))
    assert pictures.dtype == dtype
    np.testing.assert_array_equal(np.asarray(pictures, np.float32) * 128 + 128, expected)


def test_expand_takes_levels_and_colours():
    indices, levels, expected = draw(32)
    by_levels = palette.expand(indices, jnp.asarray(levels))
    np.testing.assert_array_equal(by_levels, (expected.astype(np.float32) - 128) / 128)
    colors = palette.centre(jnp.asarray(levels))
    np.testing.assert_array_equal(palette.expand(indices, colors), by_levels)
    assert palette.expand(indices, colors, jnp.bfloat16).dtype == jnp.bfloat16


def test_centring_halves_the_error_of_bfloat16():
    rng = np.random.default_rng(0)
    levels = rng.uniform(0, 255, 10_000).astype(np.float32)  # jittered: off the integers

    def error(centre, scale):
        rounded = jnp.asarray((levels - centre) / scale).astype(jnp.bfloat16)
        return np.abs(np.asarray(rounded, np.float32) * scale + centre - levels).max()

    assert error(palette.CENTRE, palette.CENTRE) <= 0.25
    assert error(0, 255) > 0.45


@pytest.mark.parametrize(
    ("platform", "present", "absent"),
    [("cpu", "stablehlo.gather", "dot_general"), ("tpu", "dot_general", "stablehlo.gather")],
)
def test_platform_decides_the_operation(platform, present, absent):
    indices, levels, _ = draw(32)
    lowered = jax.jit(palette.expand).trace(indices, levels).lower(lowering_platforms=(platform,))
    assert present in lowered.as_text()
    assert absent not in lowered.as_text()


def test_wide_palettes_are_products_of_64(monkeypatch):
    indices, levels, _ = draw(130)
    text = jax.jit(palette.expand).trace(indices, levels).lower(lowering_platforms=("tpu",))
    assert text.as_text().count("dot_general") == 3
