"""What a user may choose about training: frozen dataclasses, validated when made.

`TrainConfig` is the recipe of a run: everything that decides its numbers, and how it is watched. It
knows no path, so that it can be named (`trainer/configs/`), written into every checkpoint, and
compared with the recipe of a run that is to be continued. The command line is made from the fields
(`add_flags`, `from_flags`): a field is a flag of the same name.
"""

import argparse
import dataclasses
import math
import types
import typing
from typing import Any, Literal

from trainer.errors import UsageError

REFERENCE_BATCH = 256  # the batch that learning_rate is stated for
STRIDE = 8  # default crops are multiples of it


def _option(default: Any, text: str, *, free: bool = False) -> Any:
    """Returns a dataclass field with its help text.

    Args:
        default: value of the field when no flag is given.
        text: what `--help` says.
        free: whether a run may be continued with another value, because it changes no number.
    """
    return dataclasses.field(default=default, metadata={"help": text, "free": free})


def _check_range(flag: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise UsageError(f"--{flag} is {value}; it must lie between {low:g} and {high:g}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which CNN, and where its weights come from."""

    model: str = _option(
        "resnet", "resnet, small, squeezenet, or a backbone of keras.applications by name"
    )
    width: int = _option(0, "channels of the first stage; 0 is the model's own")
    dropout: float = _option(0.3, "share of features dropped before the classifier in training")
    weights: str = _option(
        "none", "none, imagenet (keras.applications only), or a Keras .weights.h5 of the backbone"
    )
    precision: Literal["auto", "float32", "bfloat16"] = _option(
        "auto", "of the network's arithmetic; auto is bfloat16 on TPU and GPU, float32 on CPU"
    )

    def __post_init__(self) -> None:
        _check_range("width", self.width, 0, 1024)
        _check_range("dropout", self.dropout, 0, 0.95)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How training pictures vary, and at which sizes the network sees pictures."""

    train_crop: int = _option(
        0, "side of a training picture in pixels; 0 is 7/8 of the stored size, a multiple of 8"
    )
    crop_area: float = _option(0.5, "smallest share of the picture's area that a crop keeps")
    crop_aspect: float = _option(1.22, "largest aspect ratio of a crop; its inverse is the least")
    flip: bool = _option(True, "mirror half of the training pictures")
    brightness: float = _option(0.1, "shift all levels by up to this share of their range")
    contrast: float = _option(0.1, "scale contrast by 1 ± up to this")
    saturation: float = _option(0.1, "scale saturation by 1 ± up to this")
    palette_noise: float = _option(0.0, "deviation of noise on each palette entry, in levels")
    pixel_noise: float = _option(0.0, "deviation of noise on each pixel, in levels")
    mixup: float = _option(0.0, "alpha of mixup's beta distribution; 0 is off")
    cutmix: float = _option(0.0, "alpha of cutmix's beta distribution; 0 is off")
    test_size: int = _option(0, "side to which a test picture is resized; 0 is the stored size")
    test_crop: int = _option(0, "side of the centre a test picture is cut to; 0 is test_size")
    test_flip: bool = _option(True, "in evaluation, average the logits of picture and mirror")

    def __post_init__(self) -> None:
        for flag in ("train_crop", "test_size", "test_crop"):
            _check_range(flag, getattr(self, flag), 0, 4096)
        _check_range("crop_area", self.crop_area, 0.01, 1)
        _check_range("crop_aspect", self.crop_aspect, 1, 4)
        for flag in ("brightness", "contrast", "saturation"):
            _check_range(flag, getattr(self, flag), 0, 1)
        for flag in ("palette_noise", "pixel_noise"):
            _check_range(flag, getattr(self, flag), 0, 128)
        for flag in ("mixup", "cutmix"):
            _check_range(flag, getattr(self, flag), 0, 10)

    def at(self, image_size: int) -> "AugmentConfig":
        """Returns this with every size that was left at 0 set for pictures of `image_size`."""
        train_crop = self.train_crop or max(STRIDE, image_size * 7 // 8 // STRIDE * STRIDE)
        test_size = self.test_size or image_size
        test_crop = self.test_crop or test_size
        if test_crop > test_size:
            raise UsageError(
                f"--test_crop={test_crop} is larger than the picture it is cut from "
                f"(--test_size={test_size}; pictures are stored at {image_size})"
            )
        return dataclasses.replace(
            self, train_crop=train_crop, test_size=test_size, test_crop=test_crop
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its schedule, and the loss it minimises."""

    optimizer: Literal["sgd", "adamw", "lamb"] = _option("sgd", "sgd has Nesterov momentum")
    learning_rate: float | None = _option(
        None,
        f"peak, for a global batch of {REFERENCE_BATCH}; scaled with the batch, linearly for sgd, "
        "by the square root otherwise (default: 0.4 for sgd, 0.001 for adamw, 0.005 for lamb)",
    )
    weight_decay: float | None = _option(
        None,
        "not applied to biases and BatchNorm; for sgd it joins the gradient, otherwise the update "
        "(default: 0.001 for sgd, 0.05 for adamw, 0.02 for lamb)",
    )
    momentum: float = _option(0.9, "of sgd; the first beta of adamw and lamb")
    warmup: float = _option(0.05, "share of all steps in which the learning rate rises")
    label_smoothing: float = _option(0.1, "share of the target spread over all classes")
    ema: float = _option(
        0.0, "decay per step of the average of weights and BatchNorm statistics that evaluation "
        "and prediction use; 0 is off"
    )  # fmt: skip

    def __post_init__(self) -> None:
        _check_range("learning_rate", self.learning_rate, 0, 100)
        _check_range("weight_decay", self.weight_decay, 0, 1)
        _check_range("momentum", self.momentum, 0, 0.9999)
        _check_range("warmup", self.warmup, 0, 0.9)
        _check_range("label_smoothing", self.label_smoothing, 0, 0.9)
        _check_range("ema", self.ema, 0, 0.99999)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long to train, on what batches, and what to keep and show meanwhile."""

    epochs: int = _option(30, "passes over the training split; each is floor(pictures / batch)")
    batch_size: int = _option(64, "pictures a step, over all devices of all hosts")
    seed: int = _option(0, "of initial weights, order, augmentation and dropout")
    data_streams: int = _option(
        8, "equal pieces of the record sequence, each shuffled in itself; divides batch_size, "
        "and the number of hosts divides it"
    )  # fmt: skip
    cache: bool = _option(False, "keep the decoded training pictures in memory", free=True)
    checkpoint_every: int = _option(
        0, "steps between checkpoints; 0 is an epoch, at least 100", free=True
    )
    keep_checkpoints: int = _option(2, "how many of the latest checkpoints stay", free=True)
    evaluate_every: int = _option(
        0, "epochs between evaluations while training; 0 is a tenth of the run", free=True
    )
    log_every: int = _option(
        0, "steps between progress lines; 0 is a fiftieth of the run, at least 10", free=True
    )
    tensorboard: bool = _option(True, "write TensorBoard event files", free=True)
    profile_steps: int = _option(
        0, "steps to trace, early in the run, for TensorBoard and Perfetto; written to "
        "<model_dir>/profile", free=True
    )  # fmt: skip

    def __post_init__(self) -> None:
        for flag in ("epochs", "batch_size", "data_streams", "keep_checkpoints"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} is {getattr(self, flag)}; it must be 1 or more")
        for flag in ("checkpoint_every", "evaluate_every", "log_every", "seed", "profile_steps"):
            if getattr(self, flag) < 0:
                raise UsageError(f"--{flag} is {getattr(self, flag)}; it must be 0 or more")
        if self.batch_size % self.data_streams:
            raise UsageError(
                f"--data_streams={self.data_streams} does not divide "
                f"--batch_size={self.batch_size}; {_near(self.batch_size, self.data_streams)}"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A recipe: every choice of a run but its folders."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as a JSON object, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TrainConfig":
        """Returns the recipe written by `to_json`; an unknown key is a TypeError."""
        return cls(**{name: kind(**value[name]) for name, kind in _sections().items()})

    def differences(self, other: "TrainConfig") -> list[str]:
        """Lists the choices that change a run's numbers and differ, as `--flag: mine / theirs`."""
        lines = []
        for section in _sections():
            mine, theirs = getattr(self, section), getattr(other, section)
            for field in dataclasses.fields(mine):
                pair = getattr(mine, field.name), getattr(theirs, field.name)
                if pair[0] != pair[1] and not field.metadata["free"]:
                    lines.append(f"--{field.name}: {pair[0]} / {pair[1]}")
        return lines


def _near(value: int, divisor: int) -> str:
    """Names the multiples of `divisor` next to `value`."""
    below = value // divisor * divisor
    near = [str(n) for n in (below, below + divisor) if n > 0]
    return (
        f"the nearest batch {'sizes' if len(near) > 1 else 'size'} that fit: {' and '.join(near)}"
    )


def check_batch_size(config: RunConfig, devices: int, hosts: int) -> None:
    """Raises, before anything is compiled, if devices or hosts cannot share a batch evenly.

    Args:
        config: holds `batch_size` and `data_streams`.
        devices: devices of all hosts.
        hosts: number of processes.

    Raises:
        UsageError: with the nearest sizes that fit.
    """
    if config.batch_size % devices:
        raise UsageError(
            f"--batch_size={config.batch_size} cannot be split over {devices} devices; "
            + _near(config.batch_size, math.lcm(devices, config.data_streams))
        )
    if config.data_streams % hosts:
        raise UsageError(
            f"--data_streams={config.data_streams} cannot be split over {hosts} hosts; "
            f"use a multiple of {hosts}"
        )


def _sections() -> dict[str, Any]:
    """Returns the dataclass of each part of a recipe, by its name."""
    return typing.get_type_hints(TrainConfig)


def parse_bool(text: str) -> bool:
    """Returns the truth of a flag's text, for argparse."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def _argument(annotation: Any) -> dict[str, Any]:
    """Returns the argparse keywords of a field's type."""
    if typing.get_origin(annotation) is types.UnionType:  # `float | None`
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        return {"choices": typing.get_args(annotation)}
    if annotation is bool:
        return {"type": parse_bool, "nargs": "?", "const": True, "metavar": "true|false"}
    return {"type": annotation, "metavar": annotation.__name__.upper()}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every field of `TrainConfig`, a group for every section."""
    for section, kind in _sections().items():
        group = parser.add_argument_group(section, kind.__doc__)
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            default = "" if field.default is None else f" (default: {field.default})"
            group.add_argument(
                f"--{field.name}",
                default=argparse.SUPPRESS,
                help=field.metadata["help"].replace("%", "%%") + default,
                **_argument(hints[field.name]),
            )


def from_flags(base: TrainConfig, flags: argparse.Namespace) -> TrainConfig:
    """Returns `base` with the flags that the user gave.

    Args:
        base: recipe whose values hold where no flag was given.
        flags: parsed by a parser that `add_flags` filled; other attributes are ignored.

    Returns:
        A new recipe, validated.
    """
    given = vars(flags)
    sections = {}
    for section in _sections():
        value = getattr(base, section)
        changes = {f.name: given[f.name] for f in dataclasses.fields(value) if f.name in given}
        sections[section] = dataclasses.replace(value, **changes)
    return dataclasses.replace(base, **sections)
