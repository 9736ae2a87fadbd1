"""What a compiled program says of itself: arithmetic, memory, all-reduces, estimated time."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

# As HLO spells the types that all-reduces have.
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
# `%all-reduce.7 = (f32[24]{0:T(128)}, f32[8,24]{…}) all-reduce(…` and its asynchronous form.
_ALL_REDUCE = re.compile(
    r"^\s*(?:ROOT )?%\S+ = (\(.*?\)|\S+) all-reduce(?:-start)?\(", re.MULTILINE
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one execution costs each device.

    Attributes:
        compile_seconds: what the compilation took.
        flops: floating-point operations, by the compiler's count.
        bytes_accessed: by all its instructions, in whatever memory.
        peak_memory: bytes of arguments, results, temporaries and the program.
        all_reduces: number of all-reduces.
        all_reduce_bytes: reduced in one execution, by dtype as HLO spells it.
        cycles: sum of the compiler's estimates, for instructions that compute. Copies and
            collectives have none; those in a loop count once. 0 where the compiler gives none.
    """

    compile_seconds: float
    flops: float
    bytes_accessed: float
    peak_memory: int
    all_reduces: int
    all_reduce_bytes: Mapping[str, int]
    cycles: int


def cost(program: Any, compile_seconds: float) -> Cost:
    """Returns the cost of a `jax.stages.Compiled`."""
    analysis, memory, text = program.cost_analysis(), program.memory_analysis(), program.as_text()
    count, reduced = all_reduces(text)
    return Cost(
        compile_seconds=compile_seconds,
        flops=analysis["flops"],
        bytes_accessed=analysis["bytes accessed"],
        # A result that takes over an argument's memory (the donated state) needs none of its own.
        peak_memory=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        all_reduces=count,
        all_reduce_bytes=reduced,
        cycles=estimated_cycles(text),
    )


def all_reduces(hlo: str) -> tuple[int, dict[str, int]]:
    """Returns the number of all-reduces in the text of a program, and their bytes by dtype."""
    reduced: collections.Counter[str] = collections.Counter()
    shapes = _ALL_REDUCE.findall(hlo)
    for shape in shapes:
        for dtype, sides in _ARRAY.findall(shape):
            reduced[dtype] += _BYTES[dtype] * math.prod(int(s) for s in sides.split(",") if s)
    return len(shapes), dict(reduced)


def estimated_cycles(hlo: str) -> int:
    """Returns the sum of the cycles that the TPU compiler wrote to a program's instructions.

    Its `optimal_seconds` is no substitute: each custom call counts as minus one second there.
    """
    return sum(int(cycles) for cycles in _CYCLES.findall(hlo))
