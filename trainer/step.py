"""The compiled steps: what training and evaluation do to one batch, on the device.

A step is a pure function of a state and a batch. Everything random in it is a function of the seed,
the step and the ids of the examples, but for dropout, whose mask depends on the row; rows are the
same for any number of devices and hosts. Neither
TensorFlow nor any file is touched here, so the same functions are compiled for a TPU that is not
there, or timed where TensorFlow is not installed.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import keras
import numpy as np

from trainer import augment, models, optimizers
from trainer.augment import AugmentOptions, EvalOptions
from trainer.checkpoints import State
from trainer.config import AugmentConfig, TrainConfig
from trainer.devices import Devices
from trainer.errors import UsageError

Batch = Mapping[str, jax.Array]
TrainStep = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
EvalStep = Callable[[State, Batch], dict[str, jax.Array]]

# BatchNorm's statistics average over about this share of a run's steps, within bounds.
_BN_SHARE, _BN_LEAST, _BN_MOST = 0.02, 5, 100


@dataclasses.dataclass(frozen=True)
class Program:
    """A model and all that its steps need to know.

    Attributes:
        config: the recipe; sizes of pictures are set.
        model: the network.
        classes: length of the logits.
        total_steps: of the run, for the schedule.
        dtype: of pictures and network arithmetic, float32 or bfloat16.
    """

    config: TrainConfig
    model: keras.Model
    classes: int
    total_steps: int
    dtype: np.dtype


def build(
    config: TrainConfig, *, classes: int, image_size: int, total_steps: int, platform: str
) -> Program:
    """Builds the model of a recipe.

    Args:
        config: the recipe.
        classes: length of the logits.
        image_size: side of the stored pictures, in pixels.
        total_steps: of the run.
        platform: of the devices, as JAX calls it: `cpu`, `gpu` or `tpu`.

    Raises:
        UsageError: if the model does not exist, or the recipe does not fit the pictures.
    """
    precision = config.model.precision
    if precision == "auto":
        precision = "float32" if platform == "cpu" else "bfloat16"
    window = min(max(_BN_SHARE * total_steps, _BN_LEAST), _BN_MOST)
    model = models.build(
        dataclasses.replace(config.model, precision=precision),
        classes,
        seed=config.run.seed,
        bn_momentum=1 - 1 / window,
    )
    return Program(
        config=dataclasses.replace(config, augment=config.augment.at(image_size)),
        model=model,
        classes=classes,
        total_steps=total_steps,
        dtype=jnp.dtype(precision),
    )


def init_state(program: Program) -> State:
    """Returns the state before the first step, as host arrays.

    A state has `step` int32 (), `weights` and `statistics` by the names of `trainer.models`,
    `optimizer` by `<slot>.<weight>`, and with `--ema` an `ema` of `weights` and `statistics`.
    """
    weights = jax.device_get(models.weights(program.model))
    statistics = jax.device_get(models.statistics(program.model))
    state: State = {
        "step": np.int32(0),
        "weights": weights,
        "statistics": statistics,
        "optimizer": jax.device_get(optimizers.build(program.config.optimizer).init(weights)),
    }
    if program.config.optimizer.ema:
        state["ema"] = {"weights": weights, "statistics": statistics}
    return state


def evaluated(state: State) -> State:
    """Returns the `weights` and `statistics` that evaluation uses: the average where there is one.

    Keras's own average leaves BatchNorm's statistics out, and pairs averaged weights with
    statistics of others.
    """
    source = state.get("ema", state)
    return {"weights": source["weights"], "statistics": source["statistics"]}


def augment_options(config: AugmentConfig) -> AugmentOptions:
    """Returns what `trainer.augment` does to training pictures; sizes must be set."""
    return AugmentOptions(
        crop_size=config.train_crop,
        crop_area=(config.crop_area, 1.0),
        crop_aspect=config.crop_aspect,
        flip=config.flip,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        palette_noise=config.palette_noise,
        pixel_noise=config.pixel_noise,
        mixup=config.mixup,
        cutmix=config.cutmix,
    )


def schedule(program: Program) -> optimizers.Schedule:
    """Returns the learning rate of the run."""
    config = program.config
    return optimizers.schedule(config.optimizer, config.run.batch_size, program.total_steps)


def make_train_step(program: Program, devices: Devices) -> TrainStep:
    """Returns the compiled training step.

    It takes a state, which it consumes, and a global batch as from `trainer.data`, and returns the
    state after it and `loss` and `accuracy` float32 () of the batch as augmented.

    Raises:
        UsageError: if mixup or cutmix cannot group the rows of a batch.
    """
    config = program.config
    rate = schedule(program)
    optimizer = optimizers.build(config.optimizer)
    options = augment_options(config.augment)
    # Groups lie in one stream, so on one host, for any number of hosts.
    group = augment.MIX_GROUP * config.run.data_streams
    if options.mixes and config.run.batch_size % group:
        raise UsageError(
            f"--mixup and --cutmix need a --batch_size that is a multiple of {augment.MIX_GROUP} × "
            f"--data_streams = {group}, not {config.run.batch_size}"
        )

    def train_step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        step = state["step"]
        keys = augment.example_keys(config.run.seed, step, batch["id_hash"])
        dropout_key = jax.random.fold_in(jax.random.key(config.run.seed + 1), step)
        targets = smooth(batch["label"], program.classes, config.optimizer.label_smoothing)
        pictures = augment.train_pictures(batch, options, keys, program.dtype)
        pictures, targets = augment.mix(pictures, targets, options, keys)
        pictures = models.normalize(pictures, config.model.model)

        def loss_of(weights: State) -> tuple[jax.Array, tuple[jax.Array, State]]:
            logits, statistics = models.apply(
                program.model, weights, state["statistics"], pictures, dropout_key=dropout_key
            )
            return cross_entropy(logits, targets).mean(), (logits, statistics)

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (logits, statistics)), gradients = gradient_of(state["weights"])
        weights, slots = optimizer.update(
            gradients, state["optimizer"], state["weights"], rate(step), step
        )
        after: State = {
            "step": step + 1,
            "weights": weights,
            "statistics": statistics,
            "optimizer": slots,
        }
        if "ema" in state:
            after["ema"] = _average(state["ema"], after, config.optimizer.ema, step)
        hits = logits.argmax(axis=-1) == targets.argmax(axis=-1)
        return after, {"loss": loss, "accuracy": hits.mean(dtype=jnp.float32)}

    return jax.jit(
        train_step,
        in_shardings=(devices.replicated, devices.by_row),
        out_shardings=devices.replicated,
        donate_argnums=0,
    )


def make_eval_step(program: Program, devices: Devices) -> EvalStep:
    """Returns the compiled evaluation step.

    It takes `evaluated(state)` and a global batch, and returns `logits` float32 (B, classes), the
    batch's `label` int32 (B,) and its `mask` bool (B,), each whole on every host. This is the one
    place where a picture outside training becomes logits: evaluation and prediction share it.
    """
    config = program.config
    options = EvalOptions(config.augment.test_size, config.augment.test_crop)

    def eval_step(state: State, batch: Batch) -> dict[str, jax.Array]:
        pictures = augment.eval_pictures(batch, options, program.dtype)
        pictures = models.normalize(pictures, config.model.model)
        logits = models.apply(program.model, **state, pictures=pictures)[0]
        if config.augment.test_flip:
            mirrored = models.apply(program.model, **state, pictures=pictures[:, :, ::-1])[0]
            logits = (logits + mirrored) / 2
        return {"logits": logits, "label": batch["label"], "mask": batch["mask"]}

    return jax.jit(
        eval_step,
        in_shardings=(devices.replicated, devices.by_row),
        out_shardings=devices.replicated,
    )


def smooth(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Returns targets float32 (B, classes): `smoothing` spread evenly, the rest on the label."""
    return jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each row, float32 (B,), in nats; both arguments (B, C)."""
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1)


def _average(ema: State, state: State, decay: float, step: jax.Array) -> State:
    """Moves the average towards the state; slowly only when there is something to remember."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        return (decay * old + (1 - decay) * new).astype(old.dtype)

    return {part: jax.tree.map(blend, ema[part], state[part]) for part in ema}
