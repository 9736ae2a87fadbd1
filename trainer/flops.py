"""The arithmetic that a model needs, counted from what JAX traces; nothing is compiled.

A multiply-add is two operations. Convolutions and matrix products count, nothing else does, and a
training step counts as three forward passes: the convention in which utilisation is stated
(Chowdhery et al. 2022, arXiv:2204.02311, appendix B). What a compiler adds or saves is left out, so
the figure is of the model and not of the device.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import keras

from trainer import models

TRAIN_PASSES = 3


def forward(model: keras.Model, size: int) -> int:
    """Returns the operations of a model on one picture.

    Args:
        model: as from `models.build`.
        size: side of the picture that the network gets, in pixels.
    """
    picture = jax.ShapeDtypeStruct((1, size, size, 3), model.compute_dtype)
    traced = jax.make_jaxpr(lambda *arrays: models.apply(model, *arrays)[0])(
        models.weights(model), models.statistics(model), picture
    )
    return sum(_operations(equation) for equation in _equations(traced.jaxpr))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)  # closed or not
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _operations(equation: Any) -> int:
    """Returns the operations of one equation."""
    outputs = math.prod(equation.outvars[0].aval.shape)
    name = equation.primitive.name
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        filters = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * outputs * math.prod(kernel) // filters
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * outputs * math.prod(left[axis] for axis in contracted)
    return 0
