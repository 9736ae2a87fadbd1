"""The CNNs: normalised pictures in, float32 logits out.

Every model is Functional and names each of its layers, because Keras restores weights by name and
says nothing when auto-numbered names do not match. None normalises its input: `normalize` brings
the centred colours of `trainer.palette` into the range that a network expects.
"""

import contextlib
import dataclasses
import math
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from keras import layers

from trainer import palette
from trainer.config import ModelConfig
from trainer.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What a network expects: `(level - mean) / std` per channel, levels 0 to 255.

    Attributes:
        mean: per channel, in the order red, green, blue.
        std: likewise.
        bgr: whether the network was trained on blue, green, red; the model swaps them itself.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


# ImageNet's mean and deviation, as torchvision and the Keras backbones marked so have it.
_IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_SIGNED = Normalization((127.5,) * 3, (127.5,) * 3)
_SIGNED_128 = Normalization((128.0,) * 3, (128.0,) * 3)
_LEVELS = Normalization((0.0,) * 3, (1.0,) * 3)  # the backbone rescales by itself
_CAFFE = Normalization((123.68, 116.779, 103.939), (1.0,) * 3, bgr=True)

# The longest prefix that fits a name decides. Sources: `preprocess_input` of each family, and what
# `include_preprocessing=True` does inside the EfficientNetV2, ConvNeXt and MobileNetV3 backbones.
_BACKBONES: dict[str, tuple[Normalization, dict[str, Any]]] = {
    "ConvNeXt": (_IMAGENET, {"include_preprocessing": False}),
    "DenseNet": (_IMAGENET, {}),
    "EfficientNetB": (_LEVELS, {}),
    "EfficientNetV2B": (_IMAGENET, {"include_preprocessing": False}),
    "EfficientNetV2": (_SIGNED_128, {"include_preprocessing": False}),
    "InceptionResNetV2": (_SIGNED, {}),
    "InceptionV3": (_SIGNED, {}),
    "MobileNet": (_SIGNED, {}),
    "MobileNetV2": (_SIGNED, {}),
    "MobileNetV3": (_SIGNED, {"include_preprocessing": False}),
    "ResNet50": (_CAFFE, {}),
    "ResNet101": (_CAFFE, {}),
    "ResNet152": (_CAFFE, {}),
    "ResNet50V2": (_SIGNED, {}),
    "ResNet101V2": (_SIGNED, {}),
    "ResNet152V2": (_SIGNED, {}),
    "VGG": (_CAFFE, {}),
    "Xception": (_SIGNED, {}),
}


class _HeNormal(keras.initializers.Initializer):
    """Normal with variance 2 / fan_out (He et al. 2015, arXiv:1502.01852), drawn by NumPy.

    The same numbers on every backend; and Keras's own, drawn by JAX, compile a program for each
    shape of kernel, which took 40 s of a start on two cores.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = random.getrandbits(32) if seed is None else seed

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        fan_out = math.prod(shape[:-2]) * shape[-1]
        values = np.random.default_rng(self.seed).normal(0, math.sqrt(2 / fan_out), shape)
        return keras.ops.convert_to_tensor(values.astype(np.float32), dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


def _pad(x: Any, kernel: int, name: str) -> Any:
    """Pads both sides alike, for a stride of 2.

    Padding `same` would put all of it behind where the side is even and half before where it is
    odd. A network then sees features shifted by a pixel at another size: one trained at 64 pixels
    that was right in 99 % of its pictures at 64 fell to 45 % at 72.
    """
    return layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)


def _conv(x: Any, channels: int, kernel: int, name: str, *, stride: int = 1) -> Any:
    """Convolution and BatchNorm; (B, H, W, C) to (B, ⌈H/stride⌉, ⌈W/stride⌉, channels)."""
    if stride > 1 and kernel > 1:
        x = _pad(x, kernel, name)
    x = layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer=_HeNormal(),
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)


def _pool(x: Any, name: str) -> Any:
    """Largest of 3×3, stride 2; of what ReLU let through, so zeros pad as well as -infinity."""
    return layers.MaxPooling2D(3, strides=2, name=name)(_pad(x, 3, name))


def _relu(x: Any, name: str) -> Any:
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _basic_block(x: Any, channels: int, name: str, *, stride: int) -> Any:
    """Residual block of two 3×3 convolutions (He et al. 2015, arXiv:1512.03385, figure 2)."""
    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        shortcut = _conv(x, channels, 1, f"{name}_shortcut", stride=stride)
    x = _relu(_conv(x, channels, 3, f"{name}_a", stride=stride), f"{name}_a")
    x = _conv(x, channels, 3, f"{name}_b")
    return _relu(layers.Add(name=f"{name}_add")([x, shortcut]), name)


def _residual(x: Any, width: int, blocks: int) -> Any:
    """A stem that divides the side by 4, then four stages of `blocks` blocks, width to 8 width."""
    x = _relu(_conv(x, width * 2 // 3, 3, "stem_a", stride=2), "stem_a")
    x = _relu(_conv(x, width, 3, "stem_b"), "stem_b")
    x = _pool(x, "stem_pool")
    for stage in range(4):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x = _basic_block(x, width << stage, f"stage{stage + 1}_{block + 1}", stride=stride)
    return x


def _resnet(x: Any, width: int) -> Any:
    return _residual(x, width or 48, blocks=2)


def _small(x: Any, width: int) -> Any:
    return _residual(x, width or 24, blocks=1)


def _fire(x: Any, squeeze: int, expand: int, name: str) -> Any:
    """Fire module of SqueezeNet (Iandola et al. 2016, arXiv:1602.07360), with BatchNorm."""
    x = _relu(_conv(x, squeeze, 1, f"{name}_squeeze"), f"{name}_squeeze")
    one = _relu(_conv(x, expand // 2, 1, f"{name}_one"), f"{name}_one")
    three = _relu(_conv(x, expand // 2, 3, f"{name}_three"), f"{name}_three")
    return layers.Concatenate(name=f"{name}_concat")([one, three])


def _squeezenet(x: Any, width: int) -> Any:
    width = width or 48
    x = _relu(_conv(x, width, 3, "stem", stride=2), "stem")
    for stage, factor in enumerate((2, 4, 6, 8), start=1):
        x = _pool(x, f"pool{stage}")
        for block in (1, 2):
            x = _fire(x, width * factor // 2, width * factor, f"fire{stage}_{block}")
    return x


_OWN: dict[str, Callable[[Any, int], Any]] = {
    "resnet": _resnet,
    "small": _small,
    "squeezenet": _squeezenet,
}


def names() -> list[str]:
    """Lists the models of this project and the backbones of keras.applications that fit it."""
    backbones = [name for name in dir(keras.applications) if name[0].isupper() and _family(name)]
    return [*_OWN, *backbones]


def _family(name: str) -> tuple[Normalization, dict[str, Any]] | None:
    prefixes = [prefix for prefix in _BACKBONES if name.startswith(prefix)]
    return _BACKBONES[max(prefixes, key=len)] if prefixes else None


def normalization(name: str) -> Normalization:
    """Returns the input that the model called `name` expects.

    Raises:
        UsageError: if there is no such model.
    """
    if name in _OWN:
        return _SIGNED_128
    family = _family(name) if name in names() else None
    if family is None:
        raise UsageError(f"--model={name} is not known; choose one of {', '.join(names())}")
    return family[0]


def normalize(pictures: jax.Array, name: str) -> jax.Array:
    """Returns centred colours in the range that a model expects.

    Args:
        pictures: (level - 128) / 128, float (B, H, W, 3), as from `trainer.augment`.
        name: of the model.

    Returns:
        The same shape and dtype. The models of this project take centred colours as they are.
    """
    wanted = normalization(name)
    scale = palette.CENTRE / np.array(wanted.std, np.float32)
    shift = (palette.CENTRE - np.array(wanted.mean, np.float32)) / np.array(wanted.std, np.float32)
    if (scale == 1).all() and (shift == 0).all():
        return pictures
    return (pictures.astype(np.float32) * scale + shift).astype(pictures.dtype)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the one generator that Keras draws unseeded initializers' seeds from: Python's."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build(
    config: ModelConfig, classes: int, *, seed: int = 0, bn_momentum: float = 0.9
) -> keras.Model:
    """Builds a model.

    Args:
        config: its name, width, dropout, initial weights and precision; `auto` means float32 here,
            see `train.resolve_precision`.
        classes: length of the logits.
        seed: of the initial weights.
        bn_momentum: decay per step of BatchNorm's moving statistics.

    Returns:
        A Functional model from normalised RGB float (B, H, W, 3), any H and W, to logits float32
        (B, classes).

    Raises:
        UsageError: if the name or the weights do not exist or do not fit.
    """
    mean_and_std = normalization(config.model)
    policy = "mixed_bfloat16" if config.precision == "bfloat16" else "float32"
    with _seeded(seed), _dtype_policy(policy):
        pictures = keras.Input((None, None, 3), name="pictures")
        if config.model in _OWN:
            features = _OWN[config.model](pictures, config.width)
        else:
            features = _backbone(config)(pictures[..., ::-1] if mean_and_std.bgr else pictures)
        x = layers.GlobalAveragePooling2D(name="pool")(features)
        x = layers.Dropout(config.dropout, name="dropout")(x)
        logits = layers.Dense(
            classes,
            kernel_initializer="zeros",
            dtype="float32",
            name="logits",
        )(x)
        model = keras.Model(pictures, logits, name="cnn")
    for layer in model._flatten_layers():  # the only walk that enters nested backbones
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = bn_momentum
    if config.weights not in ("none", "imagenet"):
        _load_weights(model, config.weights)
    return model


def _backbone(config: ModelConfig) -> keras.Model:
    """Makes a keras.applications network without its top, which would end in bfloat16 softmax."""
    if config.width:
        raise UsageError(f"--width={config.width} is of resnet, small and squeezenet only")
    family = _family(config.model)
    assert family is not None  # normalization() has refused other names
    try:
        backbone: keras.Model = getattr(keras.applications, config.model)(
            include_top=False,
            weights="imagenet" if config.weights == "imagenet" else None,
            input_shape=(None, None, 3),
            **family[1],
        )
        # Not by its argument: EfficientNetV2 and ConvNeXt look up their blocks by the name.
        backbone.name = "backbone"
        return backbone
    except OSError as error:  # the download failed
        raise UsageError(
            f"--weights=imagenet of {config.model} could not be had ({error}); download the file "
            "where there is a network and give its path"
        ) from error


def _load_weights(model: keras.Model, path: str) -> None:
    """Loads a `.weights.h5` and makes sure that it did something.

    Keras restores by layer name and stays silent when no name fits, so kernels that kept their
    random values are an error.
    """
    backbones = [layer for layer in model.layers if layer.name == "backbone"]
    target = backbones[0] if backbones else model
    if not Path(path).is_file():
        raise UsageError(f"--weights={path}: no such file (or write none, or imagenet)")
    kernels = [v for v in target.trainable_variables if v.name == "kernel"]
    before = [np.asarray(v.value) for v in kernels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning for each layer; the check below is one
            target.load_weights(path)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"--weights={path} does not fit {target.name} of --model: {str(error).splitlines()[0]}"
        ) from error
    kept = [v.path for v, old in zip(kernels, before, strict=True) if np.array_equal(v.value, old)]
    if kept:
        raise UsageError(
            f"--weights={path} left {len(kept)} of {len(kernels)} kernels as they were "
            f"({kept[0]} is one): it holds other layers than this model"
        )


def _key(variable: Any) -> str:
    return variable.path.replace("/", ".")  # a slash would be a folder to Orbax


def _is_seed(variable: Any) -> bool:
    return "seed_generator" in variable.path


def weights(model: keras.Model) -> dict[str, Any]:
    """Returns the trainable arrays of a model by name."""
    return {_key(v): v.value for v in model.trainable_variables}


def statistics(model: keras.Model) -> dict[str, Any]:
    """Returns the arrays that training updates without gradients, such as BatchNorm's, by name.

    The states of dropout's generators are left out: `apply` derives them from its key, so that the
    mask of a step depends on nothing before it.
    """
    return {_key(v): v.value for v in model.non_trainable_variables if not _is_seed(v)}


def apply(
    model: keras.Model,
    weights: dict[str, Any],
    statistics: dict[str, Any],
    pictures: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Runs a model as a pure function of its arrays.

    Args:
        model: gives the structure; its own arrays are not read.
        weights: as from `weights`.
        statistics: as from `statistics`.
        pictures: normalised, float (B, H, W, 3).
        dropout_key: a typed key, for training; None runs the model as in evaluation.

    Returns:
        Logits float32 (B, classes), and the statistics after this batch.
    """
    training = dropout_key is not None
    key = jax.random.key(0) if dropout_key is None else dropout_key
    fixed = [
        jax.random.key_data(jax.random.fold_in(key, i)) if _is_seed(v) else statistics[_key(v)]
        for i, v in enumerate(model.non_trainable_variables)
    ]
    trained = [weights[_key(v)] for v in model.trainable_variables]
    logits, fixed = model.stateless_call(trained, fixed, pictures, training=training)
    after = {
        _key(v): value
        for v, value in zip(model.non_trainable_variables, fixed, strict=True)
        if not _is_seed(v)
    }
    return logits, after
