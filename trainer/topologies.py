"""Slices of TPU by name, such as `v5e:2x4`, as the compiler knows them: no TPU is needed.

The TPU compiler is `libtpu`, of the extra `tpu`. JAX and it read their environment when they are
loaded, so whoever compiles for a TPU imports this module before JAX.
"""

import dataclasses
import importlib.util
import itertools
import math
import os
import re

from trainer.accelerators import NO_TPU_HERE, TPUS, Accelerator
from trainer.errors import UsageError

os.environ.update(
    NO_TPU_HERE,
    JAX_PLATFORMS="cpu",  # else JAX looks for a TPU of this machine, for minutes on some
    TPU_SKIP_MDS_QUERY="1",  # no questions to a metadata server that is not there
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # no lock: nothing here is used up
    TPU_STDERR_LOG_LEVEL="3",
    TPU_LOG_DIR="disabled",
)

import jax
from jax.experimental import topologies as jax_topologies

_EXAMPLES = "v2:2x2, v3:2x2, v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4, tpu7x:2x2x1"
# A whole pod, by the pages of each version at cloud.google.com/tpu/docs. Asked for more of v5e the
# compiler aborts the process.
_PODS = {
    "v2": (16, 16, 1),
    "v3": (32, 32, 1),
    "v4": (16, 16, 16),
    "v5e": (16, 16, 1),
    "v5p": (16, 20, 28),
    "v6e": (16, 16, 1),
    "tpu7x": (16, 24, 24),
}
_HOST_CHIPS = (2, 2, 1)  # of a host of a slice of several hosts
# One device a chip, as a TPU VM has it; the other chips are so by themselves or cannot be.
_CHIP_CONFIG = {"v4": "megacore"}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice and its devices.

    Attributes:
        name: as in `v5e:2x4`.
        accelerator: its kind of chip.
        hosts: number of hosts.
        devices: to compile for; they cannot compute.
        memory: that the compiler lets a program have, in bytes a device.
    """

    name: str
    accelerator: Accelerator
    hosts: int
    devices: tuple[jax.Device, ...]
    memory: int


def require_compiler() -> None:
    """Raises if there is no TPU compiler.

    Raises:
        UsageError: it tells how to install it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            "the TPU compiler, libtpu, is not installed; run `make check-tpu`, or "
            "`pip install '.[tpu]'`"
        )


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Returns the chip of a slice's name and the chips along each of three axes.

    Raises:
        UsageError: if there is no such chip, the rest is not a shape, or more than a pod of it.
    """
    chip, _, shape = name.partition(":")
    if chip not in TPUS:
        raise UsageError(
            f"--topology={name}: no chip {chip!r}; there are {', '.join(TPUS)}, as in {_EXAMPLES}"
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise UsageError(
            f"--topology={name}: {shape!r} is not a shape in chips; write it as in {_EXAMPLES}"
        )
    sides = tuple(int(side) for side in shape.split("x"))
    sides += (1,) * (3 - len(sides))
    pod = _PODS[chip]
    if any(side > most for side, most in zip(sorted(sides), sorted(pod), strict=True)):
        raise UsageError(f"--topology={name}: a pod of {chip} is {_text(pod)} chips, no more")
    return chip, sides


def _text(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


def host_shape(name: str, sides: tuple[int, ...], hosts: int | None) -> tuple[int, ...]:
    """Returns the chips of a host along each axis.

    Args:
        name: of the slice, for the message.
        sides: chips of the slice along each axis.
        hosts: number of hosts; None for the usual four chips a host, or as many as there are.

    Raises:
        UsageError: if hosts with equal boxes of chips cannot make up the slice; it lists the
            numbers that can.
    """
    if hosts is None:
        return tuple(min(pair) for pair in zip(sides, _HOST_CHIPS, strict=True))
    divisors = [[d for d in range(1, side + 1) if side % d == 0] for side in sides]
    boxes = {
        box: math.prod(sides) // math.prod(box)
        # The widest come last: of boxes with the same number of chips the most compact wins.
        for box in sorted(itertools.product(*divisors), key=sum, reverse=True)
    }
    by_hosts = {count: box for box, count in boxes.items()}
    if hosts not in by_hosts:
        raise UsageError(
            f"--hosts={hosts} cannot share the {math.prod(sides)} chips of {name} evenly; "
            f"choose one of {', '.join(map(str, sorted(by_hosts)))}"
        )
    return by_hosts[hosts]


def describe(name: str, hosts: int | None = None) -> Slice:
    """Returns the slice of a name.

    Args:
        name: chip and shape in chips.
        hosts: number of hosts; None for the usual four chips a host.

    Raises:
        UsageError: if there is no such slice.
    """
    chip, sides = parse(name)
    bounds = host_shape(name, sides, hosts)
    options = {"chip_config_name": _CHIP_CONFIG[chip]} if chip in _CHIP_CONFIG else {}
    try:
        devices = jax_topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{chip}:{_text(sides)}",
            chips_per_host_bounds=bounds,
            **options,
        ).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2].splitlines()[0]
        raise UsageError(
            f"--topology={name}: the TPU compiler has no such slice ({reason})"
        ) from error
    return Slice(
        name=name,
        accelerator=TPUS[chip],
        hosts=len({device.process_index for device in devices}),
        devices=tuple(devices),
        memory=_memory(devices[0]),
    )


def _memory(device: jax.Device) -> int:
    """Returns the bytes that a program may use, from the refusal of one that uses far too many."""
    huge = jax.ShapeDtypeStruct((1 << 50,), "uint8")
    sharding = jax.sharding.SingleDeviceSharding(device)
    program = jax.jit(lambda x: x + 1, in_shardings=sharding, out_shardings=sharding)
    try:
        program.lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"available HBM \(([\d.]+)([KMGT])\)", str(error))
        if found:
            return bytes_of(*found.groups())
        raise
    raise RuntimeError("the TPU compiler took a program of a pebibyte")


def bytes_of(number: str, unit: str) -> int:
    """Returns the bytes of a number as the compiler prints it, such as 15.75 and G."""
    return round(float(number) * 1024 ** ("KMGT".index(unit) + 1))
