"""What a compiled program says of itself, against programs whose costs are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from trainer import compiled
from trainer.devices import Devices

# As libtpu 0.0.42 prints them, shortened.
HLO = """
%fused_computation.1 (p: f32[24]) -> f32[24] {
  ROOT %multiply.1 = f32[24]{0:T(128)S(1)} multiply(%p, %p)
}
ENTRY %main {
  %fusion.5 = f32[24]{0} fusion(%x), calls=%fused_computation.1, backend_config={"window_config":{"estimated_cycles":"1825","iteration_bounds":["1"]}}
  %all-reduce.12 = f32[16]{0:T(128)S(1)} all-reduce(%fusion.5), channel_id=13, to_apply=%add
  %all-reduce.146 = (bf16[3,3,24,48]{3,2,1,0:T(8,128)(2,1)}, f32[]{:T(128)}) all-reduce(%a, %b), channel_id=17
  %get-tuple-element.140 = f32[24]{0:T(128)S(1)} get-tuple-element(%all-reduce.146), index=0
  %all-reduce-start.1 = bf16[8,128]{1,0} all-reduce-start(%c), channel_id=18
  %all-reduce-done.1 = bf16[8,128]{1,0} all-reduce-done(%all-reduce-start.1)
  ROOT %convolution.2 = f32[24]{0} convolution(%y, %z), backend_config={"window_config":{"estimated_cycles":"175"}}
}
"""  # noqa: E501


def test_all_reduces_are_counted_once_with_their_bytes_by_dtype():
    assert compiled.all_reduces(HLO) == (3, {"f32": 64 + 4, "bf16": 3 * 3 * 24 * 48 * 2 + 2048})


def test_cycles_are_summed():
    assert compiled.estimated_cycles(HLO) == 2000


def test_a_program_of_known_cost():
    devices = Devices.of()
    whole = NamedSharding(devices.mesh, PartitionSpec())

    @functools.partial(jax.jit, in_shardings=(devices.by_row, whole), out_shardings=whole)
    def product_of_sums(rows, matrix):
        return rows.sum(axis=0) @ matrix

    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((64, 32), (32, 48))]
    program = product_of_sums.lower(*shapes).compile()
    cost = compiled.cost(program, 1.5)
    assert cost.compile_seconds == 1.5
    assert cost.all_reduces == 1
    assert cost.all_reduce_bytes == {"f32": 32 * 4}
    # The product of each device, its sums of 8 rows, and some for the reduction.
    assert 2 * 32 * 48 + 7 * 32 <= cost.flops <= 2 * 32 * 48 + 20 * 32
    assert cost.peak_memory >= (8 * 32 + 32 * 48 + 48) * 4
    assert cost.cycles == 0  # only TPUs estimate them


def test_memory_of_a_consumed_argument_counts_once():
    state = jax.ShapeDtypeStruct((1 << 20,), jnp.float32)
    costs = [
        compiled.cost(jax.jit(lambda x: x + 1, donate_argnums=d).lower(state).compile(), 0)
        for d in ((), (0,))
    ]
    assert costs[0].peak_memory - costs[1].peak_memory == 4 << 20
