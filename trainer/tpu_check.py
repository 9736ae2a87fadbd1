"""Compiles the steps of a run for a slice of TPU, on a machine without one, and tells their cost.

The steps are those of `trainer.step` that `train` runs, and the compiler is the one that a TPU VM
would use. Compiled programs are not kept: one read back from disk has no estimates.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer import topologies  # sets what JAX reads when it is imported

import jax  # isort: skip
import numpy as np
from rich.console import Console
from rich.table import Table

from trainer import augment, compiled, config, metadata, step, versions
from trainer.compiled import Cost
from trainer.config import AugmentConfig, RunConfig, TrainConfig
from trainer.devices import Devices
from trainer.errors import UsageError
from trainer.topologies import Slice

_TRAIN_PICTURES = 8144  # of Stanford Cars; the schedule needs some length
NO_AUGMENTATION = AugmentConfig(
    crop_area=1, crop_aspect=1, flip=False, brightness=0, contrast=0, saturation=0
)

Spec = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What the steps are fed.

    Attributes:
        image_size: side of the stored pictures, in pixels.
        classes: number of classes.
        colors: rows of a palette; 0 for `rgb`.
        encoding: as in `trainer.metadata`.
        count: pictures of the training split.
    """

    image_size: int = 256
    classes: int = 196
    colors: int = 32
    encoding: str = "indexed"
    count: int = _TRAIN_PICTURES

    def __post_init__(self) -> None:
        if self.image_size < 8 or self.classes < 1 or self.colors < 0:
            raise UsageError(
                f"--image_size={self.image_size} --classes={self.classes} --colors={self.colors}: "
                "pictures have 8 pixels a side or more, and there is a class at least"
            )
        if self.encoding == "packed" and (self.image_size % 8 or self.colors > 32):
            raise UsageError(
                f"--encoding=packed needs an --image_size that 8 divides, not {self.image_size}, "
                f"and at most 32 colours, not {self.colors}"
            )

    @classmethod
    def of(cls, data_dir: str) -> "Pictures":
        """Returns what a folder of shards holds."""
        info = metadata.read(data_dir)
        return cls(
            image_size=info.image_size,
            classes=info.num_classes,
            colors=info.colors,
            encoding=info.encoding,
            count=info.split("train").num_examples,
        )

    def batch(self, rows: int) -> Spec:
        """Returns shapes and dtypes of a training batch, as `trainer.data` delivers it."""
        side = self.image_size
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "label": ((), np.int32),
            "id_hash": ((), np.uint32),
        }
        if self.encoding in ("png", "rgb"):
            shapes["image"] = ((side, side, 3), np.uint8)
        else:
            shapes["palette"] = ((self.colors, 3), np.uint8)
            if self.encoding == "packed":
                shapes["packed"] = ((5, side // 8, side), np.uint8)
            else:
                shapes["indices"] = ((side, side), np.uint8)
        return {
            name: jax.ShapeDtypeStruct((rows, *shape), dtype)
            for name, (shape, dtype) in shapes.items()
        }


@dataclasses.dataclass(frozen=True)
class Shares:
    """Parts of a training step, by the cycles that the compiler estimates with and without them.

    Attributes:
        expansion: of the palette, at the size the network gets; None for pictures without one.
        augmentation: all else before the network, and the expansion of what a crop discards.
    """

    expansion: float | None
    augmentation: float


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest global batch found to fit.

    Attributes:
        batch_size: it was compiled.
        peak_memory: of a device, in bytes.
    """

    batch_size: int
    peak_memory: int


@dataclasses.dataclass(frozen=True)
class Check:
    """All that `check-tpu` found."""

    train: Cost
    evaluation: Cost
    shares: Shares | None
    largest_batch: LargestBatch | None


class _OutOfMemoryError(Exception):
    """A program that needs more memory than a device has; `needed` in bytes."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


def check(
    recipe: TrainConfig,
    pictures: Pictures,
    topology: str,
    console: Console,
    *,
    hosts: int | None = None,
    shares: bool = True,
    largest_batch: bool = False,
    json_path: Path | None = None,
) -> Check:
    """Compiles the training and the evaluation step of a recipe for a slice, and prints their cost.

    Args:
        recipe: as for training.
        pictures: that would be trained on.
        topology: name of the slice.
        console: where progress and the table are shown.
        hosts: of the slice; None for the usual four chips a host.
        shares: whether to measure the shares of expansion and augmentation: two compilations more.
        largest_batch: whether to search for it: two or three compilations more.
        json_path: file to write the result to as well.

    Raises:
        UsageError: if there is no TPU compiler, versions, slice, recipe and pictures do not go
            together, or a step does not fit the memory of a device.
    """
    topologies.require_compiler()
    versions.check_tpu()
    chips = topologies.describe(topology, hosts)
    devices = Devices.of(chips.devices)
    config.check_batch_size(recipe.run, len(devices), chips.hosts)
    jax.config.update("jax_enable_compilation_cache", False)
    compiler = _Compiler(recipe, pictures, devices, console)
    console.print(_title(recipe, pictures, chips), highlight=False, soft_wrap=True)
    try:
        train = compiler.train()
        evaluation = compiler.evaluation()
    except _OutOfMemoryError as error:
        raise UsageError(_too_large(recipe.run, chips, error.needed)) from error
    result = Check(
        train=train,
        evaluation=evaluation,
        shares=compiler.shares(train) if shares else None,
        largest_batch=compiler.largest_batch(train, chips.memory) if largest_batch else None,
    )
    _show(result, chips, console)
    if json_path:
        json_path.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    return result


class _Compiler:
    """Compiles steps of one recipe, changed in this or that."""

    def __init__(
        self, recipe: TrainConfig, pictures: Pictures, devices: Devices, console: Console
    ) -> None:
        self._recipe = recipe
        self._pictures = pictures
        self._devices = devices
        self._console = console

    def train(self) -> Cost:
        """Compiles the training step."""
        return self._train("training step", self._recipe, self._pictures)

    def evaluation(self) -> Cost:
        """Compiles the evaluation step."""
        program = self._program(self._recipe, self._pictures)
        batch = self._pictures.batch(self._recipe.run.batch_size)
        batch["mask"] = jax.ShapeDtypeStruct(batch["label"].shape, np.bool_)
        state = step.evaluated(_shapes(step.init_state(program)))
        return self._compile(
            "evaluation step", step.make_eval_step(program, self._devices), state, batch
        )

    def shares(self, whole: Cost) -> Shares:
        """Compiles the training step without augmentation, then without expansion as well."""
        size = self._recipe.augment.at(self._pictures.image_size).train_crop
        recipe = dataclasses.replace(
            self._recipe, augment=dataclasses.replace(NO_AUGMENTATION, train_crop=size)
        )
        # Bit planes exist for some sides only.
        packed = self._pictures.encoding == "packed" and size % 8 == 0
        indexed = dataclasses.replace(
            self._pictures, image_size=size, encoding="packed" if packed else "indexed"
        )
        rgb = dataclasses.replace(indexed, encoding="rgb")
        bare = self._train("training step without both", recipe, rgb)
        if self._pictures.encoding in ("png", "rgb"):
            return Shares(None, 1 - bare.cycles / whole.cycles)
        expanding = self._train("training step without augmentation", recipe, indexed)
        return Shares(
            expansion=(expanding.cycles - bare.cycles) / whole.cycles,
            augmentation=1 - expanding.cycles / whole.cycles,
        )

    def largest_batch(self, first: Cost, memory: int) -> LargestBatch:
        """Searches for the largest batch that fits.

        Args:
            first: cost of the recipe's own batch.
            memory: of a device, in bytes.
        """
        run = self._recipe.run
        options = step.augment_options(self._recipe.augment.at(self._pictures.image_size))
        group = augment.MIX_GROUP if options.mixes else 1
        unit = math.lcm(len(self._devices), group * run.data_streams)

        def measure(rows: int) -> int:
            sized = dataclasses.replace(self._recipe, run=dataclasses.replace(run, batch_size=rows))
            try:
                return self._train(f"a batch of {rows:,}", sized, self._pictures).peak_memory
            except _OutOfMemoryError as error:
                return max(error.needed, memory + 1)

        return LargestBatch(
            *largest_fitting((run.batch_size, first.peak_memory), memory, unit, measure)
        )

    def _train(self, name: str, recipe: TrainConfig, pictures: Pictures) -> Cost:
        program = self._program(recipe, pictures)
        train_step = step.make_train_step(program, self._devices)
        batch = pictures.batch(recipe.run.batch_size)
        return self._compile(name, train_step, _shapes(step.init_state(program)), batch)

    def _program(self, recipe: TrainConfig, pictures: Pictures) -> step.Program:
        steps = max(pictures.count // recipe.run.batch_size, 1)
        return step.build(
            recipe,
            classes=pictures.classes,
            image_size=pictures.image_size,
            total_steps=recipe.run.epochs * steps,
            platform="tpu",
        )

    def _compile(self, name: str, function: Any, state: Mapping[str, Any], batch: Spec) -> Cost:
        start = time.perf_counter()
        with self._console.status(f"compiling the {name} …"):
            try:
                program = function.lower(state, batch).compile()
            except jax.errors.JaxRuntimeError as error:
                raise _translated(error) from error
        seconds = time.perf_counter() - start
        self._console.print(f"compiled  {name} in {seconds:.0f} s", highlight=False)
        return compiled.cost(program, seconds)


def largest_fitting(
    first: tuple[int, int], memory: int, unit: int, measure: Callable[[int], int]
) -> tuple[int, int]:
    """Searches for the most rows that fit: a second size, a line through both, and the proof.

    Args:
        first: rows that fit, and the bytes that they need.
        memory: bytes that there are.
        unit: rows must be a multiple of it.
        measure: from rows to the bytes that they need; it is asked three times at most.

    Returns:
        Rows that were measured to fit, or the first, and the bytes that they need.
    """
    points = [first]
    # Half of the memory if all of it went to pictures: far enough from the first for a good line.
    target = max(2 * first[0], first[0] * memory // first[1] // 2)
    for turn in range(3):
        rows = target // unit * unit
        if rows <= first[0]:
            break
        points.append((rows, measure(rows)))
        if turn and points[-1][1] <= memory:
            break
        (less, less_needed), (more, more_needed) = sorted(points[-2:])
        target = int(less + (memory - less_needed) * (more - less) / (more_needed - less_needed))
    return max(point for point in points if point[1] <= memory)


def _too_large(run: RunConfig, chips: Slice, needed: int) -> str:
    """Returns what to tell a person whose batch does not fit; `needed` in bytes."""
    unit = math.lcm(len(chips.devices), run.data_streams)
    # Nearly all of the memory goes to pictures, so this errs on the small side by little.
    fitting = int(run.batch_size * chips.memory / needed) // unit * unit
    return (
        f"--batch_size={run.batch_size} ({run.batch_size // len(chips.devices)} a device) needs "
        f"{_gib(needed)} of the {_gib(chips.memory)} that a program may use of "
        f"{chips.accelerator.name}; "
        + (f"about {fitting} would fit, or take" if fitting else "take")
        + " more chips, smaller pictures or a smaller model"
    )


def _translated(error: jax.errors.JaxRuntimeError) -> Exception:
    """Returns what a refusal of the TPU compiler means; the error itself if it is not of memory."""
    found = re.search(
        r"(?:\(|Used )([\d.]+)([KMGT])\)? (?:exceeds available HBM|of [\d.]+[KMGT] hbm)",
        str(error),
    )
    return _OutOfMemoryError(topologies.bytes_of(*found.groups())) if found else error


def _shapes(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), state)


def _gib(count: float) -> str:
    return f"{count / 1024**3:.2f} GiB"


def _title(recipe: TrainConfig, pictures: Pictures, chips: Slice) -> str:
    sizes = recipe.augment.at(pictures.image_size)
    batch = recipe.run.batch_size
    return (
        f"slice     {chips.name}: {len(chips.devices)} devices of {chips.accelerator.name} on "
        f"{chips.hosts} host{'s' if chips.hosts > 1 else ''}\n"
        f"model     {recipe.model.model}, {pictures.classes} classes, trained at "
        f"{sizes.train_crop}, tested at {sizes.test_crop} pixels\n"
        f"batch     {batch} ({batch // len(chips.devices)} a device) of {pictures.encoding} "
        f"{pictures.image_size}×{pictures.image_size}"
    )


def _show(result: Check, chips: Slice, console: Console) -> None:
    """Prints the table."""
    table = Table("each device, each step", title_justify="left")
    costs = (result.train, result.evaluation)
    for name in ("training", "evaluation"):
        table.add_column(name, justify="right")

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    row("compile seconds", *(f"{cost.compile_seconds:.0f}" for cost in costs))
    row("FLOPs", *(f"{cost.flops:.3g}" for cost in costs))
    row("bytes accessed", *(f"{cost.bytes_accessed:.3g}" for cost in costs))
    row("peak memory", *(_gib(cost.peak_memory) for cost in costs))
    row(
        f"  of {_gib(chips.memory)} usable ({chips.accelerator.device_memory:g} GiB)",
        *(f"{cost.peak_memory / chips.memory:.1%}" for cost in costs),
    )
    row("all-reduces", *(str(cost.all_reduces) for cost in costs))
    for dtype in sorted({name for cost in costs for name in cost.all_reduce_bytes}):
        row(
            f"  bytes in {dtype}",
            *(f"{cost.all_reduce_bytes.get(dtype, 0):,}" for cost in costs),
        )
    row("estimated cycles", *(f"{cost.cycles:,}" for cost in costs))
    if result.shares:
        if result.shares.expansion is not None:
            row("  palette expansion", f"{result.shares.expansion:.2%}", "")
        row("  augmentation", f"{result.shares.augmentation:.2%}", "")
    if result.largest_batch:
        row("largest batch", f"{result.largest_batch.batch_size:,}", "")
        row("  its peak memory", _gib(result.largest_batch.peak_memory), "")
    console.print(table)
