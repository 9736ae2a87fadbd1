"""The arithmetic of models, against what their papers say and against sums by hand."""

import keras
import pytest

from trainer import flops, models
from trainer.config import ModelConfig


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # He et al. 2015, arXiv:1512.03385, table 1: multiply-adds of the 50-layer network.
        ("ResNet50", 3.8e9),
        # Sandler et al. 2018, arXiv:1801.04381, table 4.
        ("MobileNetV2", 300e6),
    ],
)
def test_multiply_adds_are_those_of_the_papers(name, published, monkeypatch):
    # Values do not matter, and Keras's initialisers compile a program for each shape.
    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", _zeros)
    model = models.build(ModelConfig(model=name, precision="bfloat16"), classes=1000)
    assert flops.forward(model, 224) / 2 == pytest.approx(published, rel=0.02)


def _zeros(self, shape, dtype=None):
    return keras.ops.zeros(shape, dtype)


def test_stride_groups_and_dense_layers_count_what_they_do():
    pictures = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(pictures)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(pictures, keras.layers.Dense(5, name="dense")(x))
    by_hand = 8 * 8 * 8 * (3 * 3 * 3) + 8 * 8 * 8 * (3 * 3) + 8 * 5
    assert flops.forward(model, 16) == 2 * by_hand
