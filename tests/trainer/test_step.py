"""The compiled steps: the same numbers on 1, 2 and 8 devices, and each part of a step by itself."""

import dataclasses

import jax
import keras
import numpy as np
import pytest
import scipy.special

from trainer import models, step
from trainer.config import AugmentConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from trainer.devices import Devices
from trainer.errors import UsageError

SIZE, CLASSES, BATCH = 16, 5, 16
RECIPE = TrainConfig(
    model=ModelConfig(model="small", width=6, dropout=0.2),
    augment=AugmentConfig(train_crop=16, test_flip=True),
    optimizer=OptimizerConfig(ema=0.9, learning_rate=0.5),
    run=RunConfig(batch_size=BATCH),
)


def build(recipe: TrainConfig = RECIPE) -> step.Program:
    return step.build(recipe, classes=CLASSES, image_size=SIZE, total_steps=20, platform="cpu")


def batch(seed: int, rows: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "label": rng.integers(0, CLASSES, rows).astype(np.int32),
        "id_hash": rng.integers(0, 2**32, rows, dtype=np.uint32),
        "indices": rng.integers(0, 8, (rows, SIZE, SIZE), dtype=np.uint8),
        "palette": rng.integers(0, 256, (rows, 8, 3), dtype=np.uint8),
    }


@pytest.fixture(scope="module")
def program() -> step.Program:
    return build()


@pytest.fixture(scope="module")
def one() -> Devices:
    return Devices.of(jax.devices()[:1])


@pytest.fixture(scope="module")
def train_step(program, one):
    """On one device, compiled once for this module."""
    return step.make_train_step(program, one)


@pytest.fixture(scope="module")
def run(program, one, train_step):
    """A run of 10 steps on one device: [(state before, batch, state after, result)], as NumPy."""
    devices = one
    state = devices.replicate(step.init_state(program))
    steps = []
    for number in range(10):
        before = jax.device_get(state)
        state, result = train_step(state, devices.put_batch(batch(number)))
        steps.append((before, batch(number), jax.device_get(state), jax.device_get(result)))
    return steps


@pytest.mark.parametrize("count", [2, 8])
def test_n_devices_take_the_step_of_one(program, run, count):
    """From the same state and batch; whole runs of such networks drift apart chaotically."""
    devices = Devices.of(jax.devices()[:count])
    train_step = step.make_train_step(program, devices)
    for before, data, after, result in run[::2]:
        state, found = train_step(devices.replicate(before), devices.put_batch(data))
        np.testing.assert_allclose(found["loss"], result["loss"], rtol=1e-5)
        for part in ("weights", "statistics", "optimizer"):
            for name, value in after[part].items():
                change = value - before[part][name]
                scale = np.abs(change).max() + 1e-30
                error = np.abs(np.asarray(state[part][name]) - value).max() / scale
                # Float32 sums in another order: relative to the largest change of the array, and
                # no better than the array's own last bit.
                floor = 4 * np.spacing(np.abs(value).max()) / scale
                assert error < 1e-5 + floor, (part, name, error)


def test_a_step_repeats_to_the_bit(one, train_step, run):
    before, data, after, _ = run[3]
    state, _ = train_step(one.replicate(before), one.put_batch(data))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
    )


def test_augmentation_follows_the_example_and_not_its_row(program, one, train_step, run):
    """Without dropout, whose mask follows the row: here the gradient of the first step's bias."""
    rows = np.random.default_rng(0).permutation(BATCH)
    turned = {name: value[rows] for name, value in batch(0).items()}
    before = run[0][0]
    # The classifier starts at zero, so dropout cannot reach the loss or the bias.
    state, result = train_step(one.replicate(before), one.put_batch(turned))
    after, expected = run[0][2:]
    assert float(result["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
    name = "stem_a_bn.moving_variance"
    np.testing.assert_allclose(state["statistics"][name], after["statistics"][name], rtol=1e-5)


def test_plain_steps_are_those_of_keras(one):
    """Without augmentation and dropout: `train_on_batch` of Keras on pictures expanded by NumPy."""
    plain = AugmentConfig(
        **{"train_crop": 16, "crop_area": 1.0, "crop_aspect": 1.0, "flip": False},
        **dict.fromkeys(("brightness", "contrast", "saturation"), 0.0),
    )
    recipe = TrainConfig(
        model=ModelConfig(model="small", width=6, dropout=0.0),
        augment=plain,
        optimizer=OptimizerConfig(learning_rate=1.6, weight_decay=0.0, warmup=0.0),
        run=RunConfig(batch_size=BATCH),
    )
    ours, theirs = build(recipe), build(recipe).model
    theirs.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(0.1, 20), momentum=0.9, nesterov=True
        ),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    )
    train_step = step.make_train_step(ours, one)
    state = one.replicate(step.init_state(ours))
    for number in range(3):
        data = batch(number)
        state, result = train_step(state, one.put_batch(data))
        pictures = np.stack(
            [p[i] for p, i in zip(data["palette"], data["indices"], strict=True)]
        ).astype(np.float32)
        loss = theirs.train_on_batch((pictures - 128) / 128, np.eye(CLASSES)[data["label"]])
        assert float(result["loss"]) == pytest.approx(float(loss), rel=1e-4)
        for name, value in models.weights(theirs).items():
            np.testing.assert_allclose(state["weights"][name], value, rtol=1e-2, atol=1e-3)


def test_the_average_moves_weights_and_statistics(run):
    for before, _, after, _ in run[:3]:
        decay = min(0.9, (1 + before["step"]) / (10 + before["step"]))
        for part in ("weights", "statistics"):
            for name, value in after["ema"][part].items():
                expected = decay * before["ema"][part][name] + (1 - decay) * after[part][name]
                np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_evaluation_uses_the_average_where_there_is_one(run):
    state = run[-1][2]
    assert step.evaluated(state)["weights"] is state["ema"]["weights"]
    del state["ema"]
    assert step.evaluated(state)["statistics"] is state["statistics"]


def test_the_loss_falls_on_a_batch_that_repeats(program, one, train_step):
    state = one.replicate(step.init_state(program))
    data = batch(0)
    data["palette"] = (data["palette"] // 8 + data["label"][:, None, None] * 40).astype(np.uint8)
    losses = []
    for _ in range(20):
        state, result = train_step(state, one.put_batch(data))
        losses.append(float(result["loss"]))
    assert losses[0] == pytest.approx(np.log(CLASSES), rel=1e-5)  # the classifier starts at zero
    assert losses[-1] < 0.8 * losses[0]


def test_cross_entropy_and_smoothing_against_scipy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, CLASSES)).astype(np.float32) * 5
    labels = np.arange(6) % CLASSES
    targets = step.smooth(labels, CLASSES, 0.1)
    np.testing.assert_allclose(np.asarray(targets).sum(axis=1), 1, rtol=1e-6)
    assert float(targets[0, 0]) == pytest.approx(0.9 + 0.1 / CLASSES)
    expected = -(np.asarray(targets) * scipy.special.log_softmax(logits, axis=1)).sum(axis=1)
    np.testing.assert_allclose(step.cross_entropy(logits, targets), expected, rtol=1e-5)


def test_the_mirror_counts_half_in_evaluation(program, one, run):
    devices = one
    state = devices.replicate(step.evaluated(run[-1][2]))
    plain = build(
        dataclasses.replace(RECIPE, augment=AugmentConfig(train_crop=16, test_flip=False))
    )

    def logits(program, data):
        whole = {**data, "mask": np.ones(BATCH, bool)}
        return np.asarray(
            step.make_eval_step(program, devices)(state, devices.put_batch(whole))["logits"]
        )

    mirrored = batch(0)
    mirrored["indices"] = mirrored["indices"][:, :, ::-1]
    both = (logits(plain, batch(0)) + logits(plain, mirrored)) / 2
    np.testing.assert_allclose(logits(program, batch(0)), both, rtol=1e-4, atol=1e-5)


def test_mixing_needs_whole_groups_of_rows():
    recipe = dataclasses.replace(RECIPE, augment=AugmentConfig(train_crop=16, mixup=0.2))
    with pytest.raises(UsageError, match="multiple of 8 × --data_streams = 64, not 16"):
        step.make_train_step(build(recipe), Devices.of(jax.devices()[:1]))


@pytest.mark.parametrize(
    ("precision", "platform", "dtype"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "tpu", "bfloat16"),
        ("auto", "gpu", "bfloat16"),
        ("float32", "tpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_precision_follows_the_platform_unless_it_is_given(precision, platform, dtype):
    recipe = TrainConfig(model=ModelConfig(model="small", width=6, precision=precision))
    program = step.build(recipe, classes=3, image_size=SIZE, total_steps=10, platform=platform)
    assert program.dtype == dtype
    assert program.model.get_layer("stem_a_conv").compute_dtype == dtype
