"""The CNNs: names, shapes, seeds, input ranges, and weights that must not load by half."""

import jax
import keras
import numpy as np
import pytest

from trainer import models
from trainer.config import ModelConfig
from trainer.errors import UsageError


def test_the_default_network_has_the_size_of_the_reference():
    model = models.build(ModelConfig(), 196)
    assert 6.2e6 < model.count_params() < 6.6e6


@pytest.mark.parametrize("name", ["resnet", "small", "squeezenet"])
def test_own_networks_take_any_size_and_give_float32_logits(name):
    model = models.build(ModelConfig(model=name, width=6), 7)
    weights, statistics = models.weights(model), models.statistics(model)
    for side in (24, 40):
        pictures = jax.ShapeDtypeStruct((2, side, side, 3), np.float32)
        logits, _ = jax.eval_shape(lambda p: models.apply(model, weights, statistics, p), pictures)
        assert (logits.shape, logits.dtype) == ((2, 7), np.float32)


@pytest.mark.parametrize("name", ["small", "squeezenet"])
def test_strides_see_the_same_places_at_odd_and_even_sizes(name):
    """What `same` padding gets wrong: at an odd size every stride would start a pixel elsewhere."""
    model = models.build(ModelConfig(model=name, width=6), 7)
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D))
    front = keras.Model(model.input, layer.output)
    picture = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    larger = np.pad(picture, [(0, 0), (0, 1), (0, 1), (0, 0)])
    even, odd = np.asarray(front(picture)), np.asarray(front(larger))
    assert even.shape[1:3] == (4, 4)
    np.testing.assert_allclose(even[:, :2, :2], odd[:, :2, :2], rtol=1e-5, atol=1e-6)


def test_bfloat16_networks_keep_float32_weights_and_logits():
    model = models.build(ModelConfig(model="small", width=6, precision="bfloat16"), 7)
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert model.get_layer("stage1_1_a_conv").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"  # put back


def test_names_of_arrays_do_not_depend_on_what_was_built_before():
    first, second = (models.build(ModelConfig(model="small", width=6), 7) for _ in range(2))
    assert list(models.weights(first)) == list(models.weights(second))
    assert list(models.statistics(first)) == list(models.statistics(second))
    assert not any("seed" in name for name in models.statistics(first))


def test_initial_weights_are_a_function_of_the_seed():
    def kernels(seed):
        model = models.build(ModelConfig(model="small", width=6), 7, seed=seed)
        return models.weights(model)

    first, again, other = kernels(1), kernels(1), kernels(2)
    name = "stage2_1_a_conv.kernel"
    assert np.array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])
    assert not np.array_equal(first[name], first["stage2_1_b_conv.kernel"][..., :12, :])
    fan_out = 9 * 12
    assert np.std(first[name]) == pytest.approx(np.sqrt(2 / fan_out), rel=0.1)


def test_dropout_is_a_function_of_its_key_alone():
    model = models.build(ModelConfig(model="small", width=6, dropout=0.5), 7)
    weights, statistics = models.weights(model), models.statistics(model)
    weights["logits.kernel"] = np.random.default_rng(0).normal(size=(48, 7)).astype(np.float32)
    pictures = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def apply(key):
        return models.apply(model, weights, statistics, pictures, dropout_key=key)[0]

    def logits(seed):
        return np.asarray(apply(jax.random.key(seed)))

    first, again, other = logits(5), logits(5), logits(6)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_moves_statistics_by_the_momentum_given_and_evaluation_does_not():
    model = models.build(ModelConfig(model="small", width=6), 7, bn_momentum=0.75)
    weights, statistics = models.weights(model), models.statistics(model)
    pictures = np.ones((4, 16, 16, 3), np.float32)
    _, kept = models.apply(model, weights, statistics, pictures)
    assert all(np.array_equal(kept[name], statistics[name]) for name in statistics)
    key = jax.random.key(0)
    moved = jax.jit(
        lambda: models.apply(model, weights, statistics, pictures, dropout_key=key)[1]
    )()
    conv = np.asarray(
        jax.lax.conv_general_dilated(
            pictures,
            weights["stem_a_conv.kernel"],
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )
    np.testing.assert_allclose(
        moved["stem_a_bn.moving_mean"], 0.25 * conv.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["resnet51", "Resnet50", "Nothing"])
def test_an_unknown_model_is_refused_with_those_there_are(name):
    with pytest.raises(UsageError, match=f"{name} is not known; choose one of resnet, small"):
        models.build(ModelConfig(model=name), 7)


# What each family's own `preprocess_input` makes of a picture is the oracle.
FAMILIES = {
    "ResNet50V2": "resnet_v2",
    "MobileNetV2": "mobilenet_v2",
    "MobileNet": "mobilenet",
    "DenseNet121": "densenet",
    "Xception": "xception",
    "InceptionV3": "inception_v3",
    "EfficientNetB0": "efficientnet",
    "ResNet50": "resnet",
    "VGG16": "vgg16",
}


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_backbones_get_the_input_of_their_own_preprocessing(name, family):
    levels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)
    ours = np.asarray(models.normalize((levels - 128) / 128, name))
    if models.normalization(name).bgr:
        ours = ours[..., ::-1]  # the model swaps the channels
    theirs = getattr(keras.applications, family).preprocess_input(levels.copy())
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.fixture
def zero_weights(monkeypatch):
    """Keras's initializers compile a program for each shape of kernel: minutes for a backbone."""

    def zeros(self, shape, dtype=None):
        return np.zeros(shape, np.float32)

    for initializer in (keras.initializers.VarianceScaling, keras.initializers.TruncatedNormal):
        monkeypatch.setattr(initializer, "__call__", zeros)


@pytest.mark.parametrize(
    "name", ["EfficientNetV2B0", "EfficientNetV2S", "MobileNetV3Small", "ConvNeXtTiny"]
)
def test_backbones_that_could_preprocess_inside_get_the_same_outside(name, zero_weights):
    levels = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3)).astype(np.float32)
    whole = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(32, 32, 3), include_preprocessing=True
    )
    inside = [
        layer
        for layer in whole.layers
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)
    ]
    expected = levels
    for layer in inside:
        expected = layer(expected)
    ours = np.asarray(models.normalize((levels - 128) / 128, name))
    assert inside
    np.testing.assert_allclose(ours, np.asarray(expected), atol=2e-3, rtol=1e-3)


# EfficientNetV2 and ConvNeXt find their blocks by the name they were given.
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetV2B0", "ConvNeXtTiny"])
def test_a_backbone_is_built_without_its_own_preprocessing_and_top(name, zero_weights):
    model = models.build(ModelConfig(model=name), 7)
    backbone = model.get_layer("backbone")
    assert not any(isinstance(layer, keras.layers.Rescaling) for layer in backbone.layers)
    assert model.output_shape == (None, 7)
    assert model.output.dtype == "float32"


def test_weights_of_the_same_network_load(tmp_path):
    path = tmp_path / "trained.weights.h5"
    trained = models.build(ModelConfig(model="small", width=6), 7, seed=1)
    trained.get_layer("logits").kernel.assign(np.ones((48, 7)))
    trained.save_weights(path)
    loaded = models.build(ModelConfig(model="small", width=6, weights=str(path)), 7, seed=2)
    for name, value in models.weights(trained).items():
        assert np.array_equal(models.weights(loaded)[name], value)


@pytest.mark.parametrize(("classes", "width"), [(7, 9), (8, 6)])
def test_weights_of_another_network_are_refused(tmp_path, classes, width):
    path = tmp_path / "other.weights.h5"
    models.build(ModelConfig(model="small", width=width), classes).save_weights(path)
    with pytest.raises(UsageError, match=r"other\.weights\.h5"):
        models.build(ModelConfig(model="small", width=6, weights=str(path)), 7)


def test_weights_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match="no such file"):
        models.build(ModelConfig(model="small", weights="/nowhere.weights.h5"), 7)
