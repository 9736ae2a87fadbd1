"""Measures the trainer on real shards against the same compiled step fed from memory.

    python -m benchmarks.train --data_dir SHARDS [--steps train,expand,arrive] [--model small …]

The road is the trainer's own: `trainer.data` reads, `trainer.devices.Feed` puts batches on the
devices ahead, two steps are in flight. The other feed repeats a few random batches that lie in
memory, through the same `Feed`. The two take turns in short rounds, in this process; the ratio is
the median over the rounds, of wall time, which other programs disturb, and of CPU time, which on
CPU devices is what limits the rate. Three steps are fed:

- `train`: the trainer's compiled step of the model that the flags choose;
- `expand`: indices to colours, and their mean: what no step can do without;
- `arrive`: one byte of each picture, so that only the road costs.

`--memory_only` leaves the shards out; then TensorFlow is not needed, only the metadata is read.
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import rounds
from trainer import accelerators, config, flops, metadata, palette, step
from trainer.configs import demo
from trainer.devices import Devices, Feed

_IN_FLIGHT = 2  # as the trainer
_SETTLE_STEPS = 8  # more than the batches that were read ahead while the other feed had its turn
_ROUND_SECONDS = 2.0
_MEMORY_BATCHES = 8

Batch = dict[str, Any]
Step = Callable[[Any, Batch], tuple[Any, dict[str, jax.Array]]]


@dataclasses.dataclass
class Road:
    """A step and its state, and what feeds it in turn."""

    step: Step
    state: Any
    feeds: dict[str, Feed]

    def run(self, feed: Feed, steps: int) -> tuple[float, float]:
        """Runs some steps as the trainer does; returns seconds of wall and of CPU time a step."""
        flying: collections.deque[jax.Array] = collections.deque()
        wall, cpu = time.perf_counter(), time.process_time()
        latest = None
        for _ in range(steps):
            self.state, result = self.step(self.state, feed.next(latest))
            latest = result["loss"]
            flying.append(latest)
            if len(flying) > _IN_FLIGHT:
                float(flying.popleft())
        jax.block_until_ready(latest)
        return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps

    def take_turns(self, count: int, console: Console, name: str) -> dict[str, rounds.Timing]:
        """Returns the seconds a step of each feed over a number of rounds."""
        timings = {feed: rounds.Timing() for feed in self.feeds}
        first = next(iter(self.feeds.values()))
        self.run(first, 1)  # compiles
        seconds, _ = self.run(first, _SETTLE_STEPS)
        steps = max(_SETTLE_STEPS, round(_ROUND_SECONDS / seconds))
        for _ in track(range(count), f"{name}, {steps} steps a round", console=console):
            for feed, timing in timings.items():
                self.run(self.feeds[feed], _SETTLE_STEPS)
                wall, cpu = self.run(self.feeds[feed], steps)
                timing.wall.append(wall)
                timing.cpu.append(cpu)
        return timings


def from_memory(info: metadata.DatasetInfo, rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Returns batches of random pictures in this data's encoding, without end."""
    size, rng = info.image_size, np.random.default_rng(0)
    arrays: dict[str, dict[str, tuple[int, ...]]] = {
        "indexed": {"indices": (size, size), "palette": (info.colors, 3)},
        "packed": {"packed": (5, size // 8, size), "palette": (info.colors, 3)},
    }
    shapes = arrays.get(info.encoding, {"image": (size, size, 3)})
    levels = {"indices": max(1, info.colors)}

    def batch() -> dict[str, np.ndarray]:
        pictures = {
            name: rng.integers(0, levels.get(name, 256), (rows, *shape), np.uint8)
            for name, shape in shapes.items()
        }
        label = rng.integers(0, info.num_classes, rows).astype(np.int32)
        return {**pictures, "label": label, "id_hash": rng.integers(0, 1 << 32, rows, np.uint32)}

    return itertools.cycle([batch() for _ in range(_MEMORY_BATCHES)])


def arrive(state: None, batch: Batch) -> tuple[None, dict[str, jax.Array]]:
    """Looks at one byte of each array of each picture."""
    first = [value.reshape(len(value), -1)[:, 0].astype(jnp.float32) for value in batch.values()]
    return state, {"loss": functools.reduce(jnp.add, first).mean()}


def expand(state: None, batch: Batch) -> tuple[None, dict[str, jax.Array]]:
    """Turns the batch into pictures."""
    if "image" in batch:
        pictures = palette.centre(batch["image"])
    else:
        indices = palette.unpack(batch["packed"]) if "packed" in batch else batch["indices"]
        pictures = palette.expand(indices, batch["palette"])
    return state, {"loss": pictures.mean()}


def training(
    recipe: config.TrainConfig, info: metadata.DatasetInfo, devices: Devices
) -> tuple[Step, Any, float]:
    """Returns the trainer's step, its state, and the operations of a picture."""
    program = step.build(
        recipe,
        classes=info.num_classes,
        image_size=info.image_size,
        total_steps=1_000_000,
        platform=jax.devices()[0].platform,
    )
    operations = flops.forward(program.model, program.config.augment.train_crop)
    state = devices.replicate(step.init_state(program))
    return step.make_train_step(program, devices), state, flops.TRAIN_PASSES * operations


def row(
    name: str, timings: dict[str, rounds.Timing], pictures: int, peak_share: float
) -> list[str]:
    """Returns the cells of a step.

    Args:
        name: of the step.
        timings: of the feeds `shards` and `memory`, or of the latter alone.
        pictures: a step.
        peak_share: share of the devices' peak that a picture a second uses; 0 if not known.
    """
    cells = [name]
    for feed in ("shards", "memory"):
        known = timings.get(feed)
        cells.append(f"{pictures / np.median(known.wall):,.0f}" if known else "")
    if "shards" in timings:
        ratios = np.array(timings["memory"].wall) / np.array(timings["shards"].wall)
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        cells.append(f"{middle:.3f} ({low:.3f}–{high:.3f})")
        cells.append(f"{rounds.ratio(timings['shards'].cpu, timings['memory'].cpu):.3f}")
        cells.append(f"{pictures / np.median(timings['shards'].cpu):,.0f}")
    else:
        cells += ["", "", ""]
    best = timings.get("shards", timings["memory"])
    share = peak_share * pictures / float(np.median(best.wall))
    return [*cells, f"{share:.1%}" if share else ""]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data_dir", required=True, help="folder of shards")
    parser.add_argument("--steps", default="train,expand,arrive", help="which, by comma")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--memory_only", action="store_true", help="without shards and TensorFlow")
    config.add_flags(parser)
    options = parser.parse_args()
    # The small model of the demo, at the size that the data asks for.
    base = dataclasses.replace(demo.CONFIG, augment=config.AugmentConfig())
    recipe = config.from_flags(base, options)
    info = metadata.read(options.data_dir)
    devices, rows = Devices.of(), recipe.run.batch_size
    config.check_batch_size(recipe.run, len(devices), devices.hosts)
    kind = devices.mesh.devices.flat[0].device_kind
    accelerator = accelerators.of(kind)
    console = Console(width=120)
    table = Table(
        "step", "from shards, pictures a s", "from memory", "ratio (quartiles)", "of CPU",
        "from shards, a CPU s", "utilisation", box=None,
    )  # fmt: skip
    shardings = {"in_shardings": (devices.replicated, devices.by_row)}
    for name in options.steps.split(","):
        operations = 0.0
        if name == "train":
            compiled, state, operations = training(recipe, info, devices)
        else:
            compiled = jax.jit({"expand": expand, "arrive": arrive}[name], **shardings)
            state = None
        with Feed(from_memory(info, rows), devices) as memory:
            if options.memory_only:
                timings = Road(compiled, state, {"memory": memory}).take_turns(
                    options.rounds, console, name
                )
            else:
                from trainer import data  # imports TensorFlow

                batches = data.train_batches(
                    info,
                    "train",
                    global_batch=rows,
                    seed=recipe.run.seed,
                    data_streams=recipe.run.data_streams,
                )
                with Feed(batches, devices) as shards:
                    feeds = {"shards": shards, "memory": memory}
                    timings = Road(compiled, state, feeds).take_turns(options.rounds, console, name)
        peak = accelerator.device_flops * len(devices) if accelerator else 0.0
        table.add_row(*row(name, timings, rows, operations / peak if peak else 0.0))
    console.print(table)
    console.print(
        f"{info.encoding} {info.image_size}×{info.image_size}, batches of {rows}, {len(devices)} × "
        f"{kind}, {recipe.model.model}; jax {jax.__version__}; {options.rounds} rounds",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
