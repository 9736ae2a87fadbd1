"""Optimizers and schedule against those of Keras and, for LAMB, the paper written out in NumPy."""

import jax.numpy as jnp
import keras
import numpy as np
import pytest

from trainer import optimizers
from trainer.config import OptimizerConfig

SHAPES = {"a.kernel": (3, 4), "a.bias": (4,), "bn.gamma": (4,)}
STEPS = 5


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def run(config: OptimizerConfig, rate: float) -> dict[str, np.ndarray]:
    """Five steps with the gradients of seeds 1 to 5."""
    optimizer = optimizers.build(config)
    weights = arrays(0)
    slots = optimizer.init(weights)
    for step in range(STEPS):
        weights, slots = optimizer.update(
            arrays(step + 1), slots, weights, jnp.float32(rate), jnp.int32(step)
        )
    return {name: np.asarray(value) for name, value in weights.items()}


def run_keras(optimizer: keras.optimizers.Optimizer, coupled: float = 0.0) -> dict[str, np.ndarray]:
    weights = {name: keras.Variable(value, name=name) for name, value in arrays(0).items()}
    for step in range(STEPS):
        gradients = arrays(step + 1)
        gradients["a.kernel"] = gradients["a.kernel"] + coupled * np.asarray(weights["a.kernel"])
        optimizer.apply([gradients[name] for name in weights], list(weights.values()))
    return {name: np.asarray(value) for name, value in weights.items()}


def assert_same(ours, theirs):
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_sgd_is_that_of_keras_with_decay_in_the_gradient():
    ours = run(OptimizerConfig(optimizer="sgd", weight_decay=0.01, momentum=0.8), 0.1)
    theirs = run_keras(keras.optimizers.SGD(0.1, momentum=0.8, nesterov=True), coupled=0.01)
    assert_same(ours, theirs)


def test_adamw_is_that_of_keras():
    keras_adamw = keras.optimizers.AdamW(0.01, weight_decay=0.1, epsilon=1e-8)
    keras_adamw.exclude_from_weight_decay(var_names=["bias", "gamma"])
    assert_same(
        run(OptimizerConfig(optimizer="adamw", weight_decay=0.1), 0.01), run_keras(keras_adamw)
    )


def test_lamb_is_that_of_the_paper():
    rate, decay = 0.02, 0.1
    weights = {name: value.astype(np.float64) for name, value in arrays(0).items()}
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    for t in range(1, STEPS + 1):
        for name, gradient in arrays(t).items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            ratio = (first[name] / (1 - 0.9**t)) / (np.sqrt(second[name] / (1 - 0.999**t)) + 1e-6)
            if name == "a.kernel":
                ratio = ratio + decay * weights[name]
                ratio *= np.linalg.norm(weights[name]) / np.linalg.norm(ratio)
            weights[name] = weights[name] - rate * ratio
    assert_same(run(OptimizerConfig(optimizer="lamb", weight_decay=decay), rate), weights)


def test_lamb_moves_weights_that_start_at_zero():
    optimizer = optimizers.build(OptimizerConfig(optimizer="lamb"))
    weights = {"logits.kernel": jnp.zeros((2, 3))}
    gradients = {"logits.kernel": jnp.ones((2, 3))}
    after, _ = optimizer.update(
        gradients, optimizer.init(weights), weights, jnp.float32(0.1), jnp.int32(0)
    )
    np.testing.assert_allclose(after["logits.kernel"], -0.1, rtol=1e-5)


def test_the_schedule_is_that_of_keras():
    ours = optimizers.Schedule(peak=0.3, warmup_steps=10, total_steps=100)
    theirs = keras.optimizers.schedules.CosineDecay(0.0, 90, warmup_target=0.3, warmup_steps=10)
    for step in (0, 1, 9, 10, 11, 55, 99, 100):
        assert float(ours(step)) == pytest.approx(float(theirs(step)), abs=1e-7)


@pytest.mark.parametrize(
    ("optimizer", "batch", "peak"),
    [("sgd", 256, 0.5), ("sgd", 64, 0.125), ("adamw", 64, 0.25), ("lamb", 1024, 1.0)],
)
def test_the_rate_follows_the_global_batch(optimizer, batch, peak):
    config = OptimizerConfig(optimizer=optimizer, learning_rate=0.5, warmup=0.1)
    schedule = optimizers.schedule(config, batch, 200)
    assert schedule == optimizers.Schedule(pytest.approx(peak), 20, 200)
