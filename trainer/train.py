"""The training loop, read from top to bottom: devices, data, model, step, checkpoints, evaluation.

A run is a function of its recipe, its data and the number of steps done. Started again with the
same command it continues from its last checkpoint, and ends where it would have ended.
"""

import collections
import contextlib
import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from rich.console import Console

from trainer import accelerators, checkpoints, cluster, config, evaluate, flops, metadata, step
from trainer.checkpoints import BEST, LATEST, Checkpoints, RunRecord
from trainer.config import TrainConfig
from trainer.devices import Devices, Feed
from trainer.errors import NonFiniteLossError, PreemptedError, UsageError
from trainer.metadata import DatasetInfo
from trainer.profiling import Profile
from trainer.progress import Evaluation, History, Monitor, Plan, describe, plot_curves
from trainer.step import Program

_IN_FLIGHT = 2  # steps that run before the host has seen the loss of an earlier one
_CHECKPOINT_STEPS = 100  # an epoch of fewer steps is not worth a checkpoint
_REPORTS = 50  # of a run
_REPORT_STEPS = 10  # fewer make no rate
_EVALUATIONS = 10


def train(
    recipe: TrainConfig,
    data_dir: str,
    model_dir: epath.Path,
    console: Console,
    devices: Devices | None = None,
) -> None:
    """Trains a model, or continues to.

    Args:
        recipe: how.
        data_dir: folder of shards.
        model_dir: where checkpoints, history and curves go; made if it is missing.
        console: where progress is shown.
        devices: what to train on; all devices of all hosts if None.

    Raises:
        UsageError: if the recipe does not fit the data or the devices.
        DatasetError: if the data cannot be read.
        CheckpointError: if `model_dir` holds another run, or a damaged checkpoint.
        NonFiniteLossError: naming the step.
        PreemptedError: after SIGTERM or Ctrl-C, when the state is saved.
    """
    from trainer import data  # imports TensorFlow

    # Devices.
    devices = devices or Devices.of()
    host, hosts = jax.process_index(), jax.process_count()
    config.check_batch_size(recipe.run, len(devices), hosts)

    # Data.
    info = metadata.read(data_dir)
    batch_size = recipe.run.batch_size
    try:
        epoch_steps = data.steps_per_epoch(info, "train", batch_size)
    except ValueError as error:
        raise UsageError(f"--batch_size={batch_size} is too large: {error}") from error
    total_steps = recipe.run.epochs * epoch_steps
    checkpoint_every = recipe.run.checkpoint_every or max(epoch_steps, _CHECKPOINT_STEPS)
    evaluate_every = epoch_steps * (
        recipe.run.evaluate_every or math.ceil(recipe.run.epochs / _EVALUATIONS)
    )
    # Choosing the best by the test split would be training on it: only a validation split chooses.
    chooses_best = "validation" in info.splits
    held_out = next((name for name in ("validation", "test") if name in info.splits), None)

    # Model and steps.
    program = step.build(
        recipe,
        classes=len(info.class_names),
        image_size=info.image_size,
        total_steps=total_steps,
        platform=jax.devices()[0].platform,
    )
    train_step = step.make_train_step(program, devices)
    eval_step = step.make_eval_step(program, devices)
    state = devices.replicate(step.init_state(program))
    run = RunRecord.of(recipe, info, total_steps)
    accelerator = accelerators.of(devices.mesh.devices.flat[0].device_kind)
    cluster.check_agreement(
        {
            "recipe": json.dumps(recipe.to_json()),
            "data fingerprint": info.fingerprint,
            "set of versions": json.dumps(dict(run.versions)),
        }
    )
    cluster.check_shared(model_dir)
    plan = Plan(
        total_steps=total_steps,
        epoch_steps=epoch_steps,
        batch_size=batch_size,
        log_every=recipe.run.log_every or max(_REPORT_STEPS, math.ceil(total_steps / _REPORTS)),
        learning_rate=step.schedule(program),
        devices=len(devices),
        picture_flops=flops.TRAIN_PASSES
        * flops.forward(program.model, program.config.augment.train_crop),
        device_flops=accelerator.device_flops if accelerator else None,
    )

    with contextlib.ExitStack() as stack:
        # Checkpoints.
        saved = stack.enter_context(
            Checkpoints(model_dir / LATEST, keep=recipe.run.keep_checkpoints)
        )
        best = stack.enter_context(Checkpoints(model_dir / BEST)) if chooses_best else None
        start = saved.latest_step() or 0
        notes: list[str] = []
        if start:
            before = saved.read_run(start)
            checkpoints.check_same_run(before, run, info, str(model_dir))
            notes = checkpoints.notes(before, run)
            state = saved.restore(start, state)
        history = History(model_dir / "history.json", start)
        if host == 0:
            _write_settings(model_dir, run)

        # Progress, input, and how to stop.
        events = model_dir / "events" if recipe.run.tensorboard and host == 0 else None
        monitor = stack.enter_context(
            Monitor(console, history, start=start, plan=plan, events=events)
        )
        monitor.say("\n".join([_opening(program, info, devices, start, total_steps), *notes]))
        batches = data.train_batches(
            info,
            "train",
            global_batch=batch_size,
            seed=recipe.run.seed,
            start_step=start,
            data_streams=recipe.run.data_streams,
            host=host,
            hosts=hosts,
            cache=recipe.run.cache,
        )
        feed = stack.enter_context(Feed(batches, devices))
        in_flight = _InFlight(monitor, feed)
        profiled = recipe.run.profile_steps if host == 0 else 0
        profile = stack.enter_context(Profile(model_dir / "profile", profiled, start, total_steps))
        stop_requested = stack.enter_context(_stop_requests(hosts))

        # Training.
        for done in range(start + 1, total_steps + 1):
            if profile.due(done):
                in_flight.drain()
                with monitor.paused():
                    profile.turn()
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                state, result = train_step(state, feed.next(in_flight.latest))
            in_flight.add(done, result)

            if held_out and (done % evaluate_every == 0 or done == total_steps):
                in_flight.drain()
                with monitor.paused():
                    batches = data.eval_batches(
                        info, held_out, global_batch=batch_size, host=host, hosts=hosts
                    )
                    metrics = evaluate.measure(
                        *evaluate.run(eval_step, step.evaluated(state), batches, devices)
                    )
                    earlier = [row.top1 for row in history.evaluations]
                    if best and metrics.top1 > max(earlier, default=-1.0):
                        best.save(done, state, run)
                    monitor.evaluated(
                        Evaluation(
                            step=done,
                            epoch=done / epoch_steps,
                            split=held_out,
                            loss=metrics.loss,
                            top1=metrics.top1,
                            top5=metrics.top5,
                        )
                    )

            stopping = stop_requested(done)
            if done % checkpoint_every == 0 or done == total_steps or stopping:
                in_flight.drain()  # a state is saved only when its loss was finite
                with monitor.paused():
                    if host == 0:
                        history.save()
                    saved.save(done, state, run)
            if stopping and done < total_steps:
                saved.wait()
                raise PreemptedError(
                    f"stopped as asked and saved step {done:,} of {total_steps:,} in {model_dir}; "
                    "the same command continues"
                )

    # Summary.
    if host == 0:
        plot_curves(model_dir / "curves.png", history)
        closing = f"written  {model_dir} (checkpoints, history.json, curves.png)"
        if start == total_steps and history.evaluations:
            closing = f"{describe(history.evaluations[-1])}\n{closing}"
        console.print(closing, highlight=False, markup=False, soft_wrap=True)


class _InFlight:
    """The steps that were started and whose loss the host has not seen yet.

    The host stays a few steps ahead of the devices, and no further, so a loss that is not finite
    is known a few steps later and long before a checkpoint of it.
    """

    def __init__(self, monitor: Monitor, feed: Feed) -> None:
        self.latest: jax.Array | None = None
        self._monitor = monitor
        self._feed = feed
        self._steps: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()

    def add(self, number: int, result: Mapping[str, jax.Array]) -> None:
        """Adds a step, and waits for the one `_IN_FLIGHT` before it."""
        self.latest = result["loss"]
        self._steps.append((number, result))
        self._settle(_IN_FLIGHT)

    def drain(self) -> None:
        """Waits for all steps."""
        self._settle(0)

    def _settle(self, keep: int) -> None:
        while len(self._steps) > keep:
            number, result = self._steps.popleft()
            loss = float(result["loss"])
            if not np.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss of step {number:,} is {loss}; nothing was saved since. Try a lower "
                    "--learning_rate or a longer --warmup"
                )
            self._monitor.step_done(number, loss, float(result["accuracy"]), self._feed.waited)


@contextlib.contextmanager
def _stop_requests(hosts: int) -> Iterator[Callable[[int], bool]]:
    """Gives a function from the steps done to whether the run must stop after them.

    On one host SIGTERM and Ctrl-C ask for it, and a second of either ends the process at once. On
    several, JAX listens for SIGTERM and brings all hosts to stop after the same step; a handler of
    our own would silently disable that.
    """
    if hosts > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[number])

    numbers = (signal.SIGTERM, signal.SIGINT)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, ask)
    try:
        yield lambda done: asked
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _write_settings(model_dir: epath.Path, run: RunRecord) -> None:
    """Writes the recipe and a copy of preprocessing.json, for people; checkpoints hold both."""
    model_dir.mkdir(parents=True, exist_ok=True)
    texts = {"config.json": run.config.to_json(), "preprocessing.json": dict(run.preprocessing)}
    for name, value in texts.items():
        (model_dir / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _opening(
    program: Program, info: DatasetInfo, devices: Devices, start: int, total_steps: int
) -> str:
    """Returns what is about to happen, in three lines."""
    sizes = program.config.augment
    run = program.config.run
    counts = ", ".join(f"{split.num_examples:,} {name}" for name, split in info.splits.items())
    kind = devices.mesh.devices.flat[0].device_kind
    begin = f"continues after step {start:,} of" if start else "trains for"
    if start == total_steps:
        begin = "was trained before:"
    return (
        f"data     {info.data_dir}: {counts} pictures, {len(info.class_names)} classes, "
        f"{info.encoding} {info.image_size}×{info.image_size}\n"
        f"model    {program.config.model.model}, {program.model.count_params():,} weights, "
        f"{program.dtype}, trained at {sizes.train_crop}, tested at {sizes.test_crop} pixels\n"
        f"run      {begin} {total_steps:,} steps of {run.batch_size} ({run.epochs} epochs) on "
        f"{len(devices)} × {kind}"
    )
