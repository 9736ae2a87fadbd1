"""SGD with Nesterov momentum, AdamW and LAMB, and the schedule of the learning rate.

Pure functions on dictionaries of arrays keyed by the names of the weights, so that a checkpoint
names every leaf and the step stays a function of its arguments. Keras's own optimizers decay by
`weight * decay * rate` outside the momentum and outside LAMB's trust ratio; here decay is part of
what the papers say it is part of.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from trainer.config import REFERENCE_BATCH, OptimizerConfig

Arrays = dict[str, jax.Array]

_DEFAULTS = {  # learning rate for REFERENCE_BATCH, weight decay
    "sgd": (0.4, 1e-3),
    "adamw": (1e-3, 0.05),
    "lamb": (5e-3, 0.02),
}
_BETA2 = 0.999
_EPSILON = {"adamw": 1e-8, "lamb": 1e-6}  # as in the papers


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0 to `peak`, then a half cosine to 0.

    Attributes:
        peak: largest learning rate.
        warmup_steps: steps until the peak.
        total_steps: steps until 0.
    """

    peak: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """Returns the learning rate of the step that starts from `step` steps done, float32 ()."""
        step = jnp.asarray(step, jnp.float32)
        rise = step / max(self.warmup_steps, 1)
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        return self.peak * jnp.where(step < self.warmup_steps, rise, fall)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How gradients change weights.

    Attributes:
        init: from weights to the optimizer's own arrays, zeros, keyed `<slot>.<weight>`.
        update: from (gradients, own arrays, weights, learning rate, step) to (weights, own arrays).
    """

    init: Callable[[Mapping[str, jax.Array]], Arrays]
    update: Callable[
        [Arrays, Arrays, Arrays, jax.Array, jax.Array],
        tuple[Arrays, Arrays],
    ]


def schedule(config: OptimizerConfig, batch_size: int, total_steps: int) -> Schedule:
    """Returns the learning rate of a run, scaled with the global batch.

    The scale is linear for SGD (Goyal et al. 2017, arXiv:1706.02677) and the square root for AdamW
    and LAMB (You et al. 2020, arXiv:1904.00962).

    Args:
        config: rate at `REFERENCE_BATCH` and warm-up.
        batch_size: pictures a step over all devices.
        total_steps: of the whole run.
    """
    rate = config.learning_rate
    if rate is None:
        rate = _DEFAULTS[config.optimizer][0]
    scale = batch_size / REFERENCE_BATCH
    if config.optimizer != "sgd":
        scale **= 0.5
    return Schedule(rate * scale, round(config.warmup * total_steps), total_steps)


def is_decayed(name: str, weight: jax.Array) -> bool:
    """Whether weight decay applies: to kernels, and not to biases and normalisation."""
    return name.endswith("kernel") and weight.ndim > 1


def build(config: OptimizerConfig) -> Optimizer:
    """Returns the optimizer of a configuration."""
    decay = config.weight_decay
    if decay is None:
        decay = _DEFAULTS[config.optimizer][1]
    if config.optimizer == "sgd":
        return _sgd(config.momentum, decay)
    return _adam(config.momentum, decay, trust=config.optimizer == "lamb")


def _zeros(slots: tuple[str, ...]) -> Callable[[Mapping[str, jax.Array]], Arrays]:
    def init(weights: Mapping[str, jax.Array]) -> Arrays:
        return {
            f"{slot}.{name}": jnp.zeros_like(weight, jnp.float32)
            for slot in slots
            for name, weight in weights.items()
        }

    return init


def _sgd(momentum: float, decay: float) -> Optimizer:
    """SGD with Nesterov momentum; decay joins the gradient, so that momentum acts on it too."""

    def update(
        grads: Arrays, slots: Arrays, weights: Arrays, rate: jax.Array, step: jax.Array
    ) -> tuple[Arrays, Arrays]:
        new_weights, new_slots = {}, {}
        for name, weight in weights.items():
            grad = grads[name]
            if is_decayed(name, weight):
                grad = grad + decay * weight
            velocity = momentum * slots[f"velocity.{name}"] + grad
            new_slots[f"velocity.{name}"] = velocity
            new_weights[name] = weight - rate * (grad + momentum * velocity)
        return new_weights, new_slots

    return Optimizer(_zeros(("velocity",)), update)


def _adam(beta1: float, decay: float, *, trust: bool) -> Optimizer:
    """AdamW (arXiv:1711.05101); with `trust`, LAMB (arXiv:1904.00962, algorithm 2)."""
    epsilon = _EPSILON["lamb" if trust else "adamw"]

    def update(
        grads: Arrays, slots: Arrays, weights: Arrays, rate: jax.Array, step: jax.Array
    ) -> tuple[Arrays, Arrays]:
        new_weights, new_slots = {}, {}
        count = (step + 1).astype(jnp.float32)
        correct1, correct2 = 1 - beta1**count, 1 - _BETA2**count
        for name, weight in weights.items():
            grad = grads[name]
            first = beta1 * slots[f"first.{name}"] + (1 - beta1) * grad
            second = _BETA2 * slots[f"second.{name}"] + (1 - _BETA2) * grad * grad
            change = (first / correct1) / (jnp.sqrt(second / correct2) + epsilon)
            decayed = is_decayed(name, weight)
            if decayed:
                change = change + decay * weight
            if trust and decayed:  # biases and normalisation take the plain step, as in the paper
                norms = jnp.linalg.norm(weight), jnp.linalg.norm(change)
                ratio = jnp.where((norms[0] > 0) & (norms[1] > 0), norms[0] / norms[1], 1.0)
                change = ratio * change
            new_slots[f"first.{name}"], new_slots[f"second.{name}"] = first, second
            new_weights[name] = weight - rate * change
        return new_weights, new_slots

    return Optimizer(_zeros(("first", "second")), update)
