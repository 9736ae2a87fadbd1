import numpy as np
import pytest

from pipeline.quantize import pad_palette, quantize


@pytest.mark.parametrize("method", ["fast", "quality", "sklearn"])
def test_few_colours_come_back_unchanged(method):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 3), np.uint8)[rng.integers(0, 8, (20, 30))]
    indices, palette = quantize(image, 8, method)
    np.testing.assert_array_equal(palette[indices], image)


def test_padding_repeats_the_last_colour():
    palette = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    padded = pad_palette(palette, 4)
    np.testing.assert_array_equal(padded, palette[[0, 1, 1, 1]])
