"""What a person sees of a run: a live line or log lines, `history.json`, and curves."""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.summary import EventWriter


@dataclasses.dataclass(frozen=True)
class Report:
    """Some training steps, as shown and kept.

    Attributes:
        step: steps done at their end.
        epoch: the same in epochs.
        loss: mean over these steps, of augmented pictures with smoothed labels.
        accuracy: likewise.
        learning_rate: of the last of them.
        images_per_second: over all devices.
        input_wait: share of the time in which the devices starved for want of a batch.
        device_images_per_second: of one device.
        utilisation: the arithmetic that the model needs, as a share of what the devices could do in
            that time in bfloat16; None where their peak is not known.
    """

    step: int
    epoch: float
    loss: float
    accuracy: float
    learning_rate: float
    images_per_second: float
    input_wait: float
    # Not in the files of earlier releases.
    device_images_per_second: float | None = None
    utilisation: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A split measured during a run.

    Attributes:
        step: steps done.
        epoch: the same in epochs.
        split: name of the split.
        loss: cross-entropy, in nats.
        top1: share of pictures whose class came first.
        top5: share of pictures whose class came among the first five.
    """

    step: int
    epoch: float
    split: str
    loss: float
    top1: float
    top5: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of a run that its reports refer to.

    Attributes:
        total_steps: of the run.
        epoch_steps: of an epoch.
        batch_size: pictures a step, over all devices.
        log_every: steps between reports.
        learning_rate: from steps done to the rate of the next step.
        devices: number of devices.
        picture_flops: floating-point operations that the model needs for a training picture.
        device_flops: what a device can do in a second; None if that is not known.
    """

    total_steps: int
    epoch_steps: int
    batch_size: int
    log_every: int
    learning_rate: Callable[[int], Any]
    devices: int = 1
    picture_flops: float = 0.0
    device_flops: float | None = None


class History:
    """The reports and evaluations of a run, over all its restarts."""

    def __init__(self, path: epath.Path, start: int) -> None:
        """Reads what an earlier start left and forgets what came after its last checkpoint.

        Args:
            path: of `history.json`.
            start: steps done at the restart.
        """
        self._path = path
        self.reports: list[Report] = []
        self.evaluations: list[Evaluation] = []
        if path.exists():
            rows = json.loads(path.read_text())
            self.reports = [Report(**row) for row in rows["train"] if row["step"] <= start]
            self.evaluations = [
                Evaluation(**row) for row in rows["evaluation"] if row["step"] <= start
            ]

    def save(self) -> None:
        """Writes the file whole or not at all.

        Locally a rename makes it whole. On an object store a rename is a copy, and one write is
        whole by itself.
        """
        rows: dict[str, list[dict[str, Any]]] = {
            "train": [dataclasses.asdict(row) for row in self.reports],
            "evaluation": [dataclasses.asdict(row) for row in self.evaluations],
        }
        text = json.dumps(rows, indent=1) + "\n"
        if "://" in str(self._path):
            self._path.write_text(text)
            return
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(text)
        partial.replace(self._path)


class Monitor:
    """Averages, times, shows and keeps what a run reports. A context manager."""

    def __init__(
        self,
        console: Console,
        history: History,
        *,
        start: int,
        plan: Plan,
        events: epath.Path | None,
    ) -> None:
        """Prepares to show.

        Args:
            console: a bar moves in a terminal, lines are printed elsewhere; a quiet one is silent.
            history: to add to.
            start: steps done already.
            plan: of the run.
            events: folder of TensorBoard's files, or None for none.
        """
        self._console = console
        self._history = history
        self._plan = plan
        self._bar = Progress(
            TextColumn("step {task.completed:,}/{task.total:,}"),
            BarColumn(),
            TextColumn("{task.fields[now]}"),
            TextColumn("ends in"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "train", total=plan.total_steps, completed=start, now="compiling …"
        )
        self._events = EventWriter(events) if events else None
        self._compiling = True
        self._restart_clock(0.0)

    def __enter__(self) -> "Monitor":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._events:
            self._events.close()

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def step_done(self, step: int, loss: float, accuracy: float, waited: float) -> None:
        """Counts a step whose numbers have arrived, and reports when it is time.

        Args:
            step: number of the step, from 1.
            loss: of its batch.
            accuracy: likewise.
            waited: seconds that the feed has counted so far.
        """
        self._losses.append(loss)
        self._accuracies.append(accuracy)
        self._bar.update(self._task, completed=step)
        if self._compiling:  # the first step; its time would spoil the rate
            self._compiling = False
            self.say(f"compiled in {duration(time.perf_counter() - self._start)}")
            self._restart_clock(waited)
        elif step % self._plan.log_every == 0 or step == self._plan.total_steps:
            self._report(step, waited)

    def _report(self, step: int, waited: float) -> None:
        seconds = max(time.perf_counter() - self._start, 1e-9)
        plan = self._plan
        speed = len(self._losses) * plan.batch_size / seconds
        peak = plan.device_flops
        report = Report(
            step=step,
            epoch=step / self._plan.epoch_steps,
            loss=statistics.fmean(self._losses),
            accuracy=statistics.fmean(self._accuracies),
            learning_rate=float(self._plan.learning_rate(step - 1)),
            images_per_second=speed,
            input_wait=min((waited - self._waited) / seconds, 1.0),
            device_images_per_second=speed / plan.devices,
            utilisation=speed * plan.picture_flops / (plan.devices * peak) if peak else None,
        )
        now = (
            f"loss {report.loss:.3f}  accuracy {report.accuracy:.1%}  "
            f"lr {report.learning_rate:.2e}  {_speed(report, plan.devices)}  "
            f"input wait {report.input_wait:.0%}"
        )
        self._bar.update(self._task, now=now)
        if not self._console.is_terminal:
            images_left = (self._plan.total_steps - step) * self._plan.batch_size
            left = duration(images_left / report.images_per_second)
            self.say(
                f"step {step:,}/{self._plan.total_steps:,}  epoch {report.epoch:.2f}  {now}  "
                f"ends in {left}"
            )
        self._history.reports.append(report)
        if self._events:
            self._events.add("train", step, dataclasses.asdict(report))
        self._restart_clock(waited)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Shows and keeps an evaluation."""
        self._history.evaluations.append(evaluation)
        self.say(describe(evaluation))
        if self._events:
            self._events.add(evaluation.split, evaluation.step, dataclasses.asdict(evaluation))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps time that goes to something else than training out of the rate."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def _restart_clock(self, waited: float) -> None:
        self._start = time.perf_counter()
        self._waited = waited
        self._losses: list[float] = []
        self._accuracies: list[float] = []


def _speed(report: Report, devices: int) -> str:
    text = f"{report.images_per_second:,.0f} images/s"
    if devices > 1:
        text += f" ({report.device_images_per_second:,.1f} a device)"
    if report.utilisation is not None:
        text += f"  utilisation {report.utilisation:.1%}"
    return text


def describe(evaluation: Evaluation) -> str:
    """Returns an evaluation in a line."""
    return (
        f"{evaluation.split} after epoch {evaluation.epoch:.4g}:  top-1 {evaluation.top1:.2%}  "
        f"top-5 {evaluation.top5:.2%}  loss {evaluation.loss:.3f}"
    )


def duration(seconds: float) -> str:
    """Returns a duration as `1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def plot_curves(path: epath.Path, history: History) -> None:
    """Draws loss, accuracy, learning rate and speed over the epochs.

    Args:
        path: of the PNG.
        history: of the run.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained", dpi=100)
    loss, accuracy, rate, speed = figure.subplots(2, 2).flat
    epochs = [row.epoch for row in history.reports]

    def line(axes: Any, title: str, values: Sequence[float], label: str) -> None:
        axes.plot(epochs, values, label=label, linewidth=1.2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)

    line(loss, "loss", [row.loss for row in history.reports], "train (augmented, smoothed)")
    line(accuracy, "accuracy, %", [100 * r.accuracy for r in history.reports], "train (augmented)")
    line(rate, "learning rate", [row.learning_rate for row in history.reports], "")
    line(speed, "images per second", [row.images_per_second for row in history.reports], "")
    for split in dict.fromkeys(row.split for row in history.evaluations):
        rows = [row for row in history.evaluations if row.split == split]
        at = [row.epoch for row in rows]
        loss.plot(at, [row.loss for row in rows], "o-", markersize=4, label=split)
        accuracy.plot(at, [100 * row.top1 for row in rows], "o-", markersize=4, label=split)
        accuracy.plot(
            at, [100 * row.top5 for row in rows], "o:", markersize=3, label=f"{split}, top 5"
        )
    accuracy.set_ylim(0, 101)
    speed.set_ylim(bottom=0)
    loss.legend(fontsize=8)
    accuracy.legend(fontsize=8)
    with path.open("wb") as file:
        figure.savefig(file, format="png")
