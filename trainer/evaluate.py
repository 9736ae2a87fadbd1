"""Exact metrics of a trained model: every picture of a split counts once, on any devices.

The last batch is padded and masked; the logits of all rows come back to the host, where NumPy and
scikit-learn count. 8,041 pictures of 196 classes are 6 MB of logits.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from trainer import checkpoints, step
from trainer.checkpoints import BEST, LATEST, Checkpoints, RunRecord, State
from trainer.devices import Devices
from trainer.errors import CheckpointError
from trainer.step import EvalStep, Program

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_TOP = 5
_PAIRS = 20
_SHOWN_PAIRS = 5
_ANNOTATED = 30  # up to so many classes the cells of the plot carry numbers


@dataclasses.dataclass(frozen=True)
class Trained:
    """A restored model, ready to be run.

    Attributes:
        program: the model and its recipe.
        state: `weights` and `statistics` on the devices.
        run: what the checkpoint says about itself.
        step: number of training steps done.
        devices: where it runs.
        eval_step: from `step.make_eval_step`.
    """

    program: Program
    state: State
    run: RunRecord
    step: int
    devices: Devices
    eval_step: EvalStep

    def logits(self, batches: Iterable[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `run` does for this model."""
        return run(self.eval_step, self.state, batches, self.devices)


def restore(model_dir: epath.Path, devices: Devices) -> Trained:
    """Restores the best checkpoint of a model folder, or the latest where no best was kept.

    Args:
        model_dir: as `train` wrote it.
        devices: where to run it.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    for name in (BEST, LATEST):
        folder = model_dir / name
        if not folder.is_dir():
            continue
        with Checkpoints(folder) as saved:
            at = saved.latest_step()
            if at is None:
                continue
            run = saved.read_run(at)
            program = step.build(
                run.config,
                classes=len(run.class_names),
                image_size=run.image_size,
                total_steps=run.total_steps,
                platform=jax.devices()[0].platform,
            )
            state = saved.restore(at, devices.replicate(step.init_state(program)))
        return Trained(
            program=program,
            state=step.evaluated(state),
            run=run,
            step=at,
            devices=devices,
            eval_step=step.make_eval_step(program, devices),
        )
    raise CheckpointError(
        f"{model_dir} holds no checkpoint; make one with `python -m trainer train --model_dir=…`"
    )


def run(
    eval_step: EvalStep,
    state: State,
    batches: Iterable[Mapping[str, np.ndarray]],
    devices: Devices,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs a model over a split.

    Args:
        eval_step: from `step.make_eval_step`.
        state: from `step.evaluated`.
        batches: this host's, with `label` and `mask`; all of one shape.
        devices: where the state is.

    Returns:
        Logits float32 (N, classes) and labels int32 (N,) of the rows whose mask is set, in the
        order of the batches.
    """
    outputs = []
    for batch in batches:
        outputs.append(eval_step(state, devices.put_batch(batch)))
        if len(outputs) > 1:
            outputs[-2] = jax.device_get(outputs[-2])  # one step stays in flight
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(outputs))
    return whole["logits"][whole["mask"]], whole["label"][whole["mask"]]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a split says about a model.

    Attributes:
        pictures: N.
        loss: mean cross-entropy, in nats.
        top1: share of pictures whose class has the largest logit.
        top5: share of pictures whose class is among the five largest; 1 for five classes or fewer.
        top1_interval: of `top1`, 95 %, by Wilson's formula.
        top5_interval: of `top5`.
        mean_class_accuracy: mean over the classes that have pictures of their `top1`.
        confusion: int64 (classes, classes): pictures of the row's class that got the column's.
    """

    pictures: int
    loss: float
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    top5_interval: tuple[float, float]
    mean_class_accuracy: float
    confusion: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers as a JSON object, without the confusion matrix."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["confusion"]
        return fields


def measure(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """Computes the metrics of a split.

    Args:
        logits: float (N, classes), N at least 1.
        labels: int (N,).
    """
    from sklearn.metrics import confusion_matrix, top_k_accuracy_score

    count, classes = logits.shape
    every_class = np.arange(classes)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), labels=every_class)
    hits, totals = confusion.diagonal(), confusion.sum(axis=1)
    top1 = float(hits.sum() / count)
    # scikit-learn takes a perfect score by definition for something to warn of.
    top5 = (
        float(top_k_accuracy_score(labels, logits, k=_TOP, labels=every_class))
        if classes > _TOP
        else 1.0
    )
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(count), labels]
    return Metrics(
        pictures=count,
        loss=float(loss.mean()),
        top1=top1,
        top5=top5,
        top1_interval=wilson(top1, count),
        top5_interval=wilson(top5, count),
        mean_class_accuracy=float((hits[totals > 0] / totals[totals > 0]).mean()),
        confusion=confusion,
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns the 95 % score interval of a share (Wilson 1927), which stays within 0 and 1.

    Args:
        share: of successes.
        count: of trials, at least 1.
    """
    z2 = _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def most_confused(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Returns the `count` largest errors: (class, taken for, pictures), most pictures first."""
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, errors.shape)
    found = zip(rows.tolist(), columns.tolist(), errors[rows, columns].tolist(), strict=True)
    return [row for row in found if row[2]]


def evaluate(
    data_dir: str, model_dir: epath.Path, split: str, batch_size: int, console: Console
) -> Metrics:
    """Measures a model on a split, prints it, and writes `<model_dir>/evaluation/<split>/`.

    Args:
        data_dir: folder of shards.
        model_dir: folder that `train` wrote.
        split: name of the split.
        batch_size: pictures a step; rounded up to what the devices share evenly.
        console: where the summary is printed.

    Raises:
        CheckpointError: if the model is missing, damaged, or of another class table or palette.
        DatasetError: if the data cannot be read.
    """
    from trainer import data, metadata  # data imports TensorFlow

    info = metadata.read(data_dir)
    devices = Devices.of()
    trained = restore(model_dir, devices)
    checkpoints.check_data(trained.run, info, str(model_dir))
    batches = data.eval_batches(
        info,
        split,
        global_batch=devices.rows_that_fit(batch_size),
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    metrics = measure(*trained.logits(batches))
    if jax.process_index() == 0:
        folder = model_dir / "evaluation" / split
        write(folder, metrics, info.class_names, trained)
        show(metrics, info.class_names, split, folder, console)
    return metrics


def show(
    metrics: Metrics, class_names: tuple[str, ...], split: str, folder: epath.Path, console: Console
) -> None:
    """Prints the metrics and the most confused classes.

    Args:
        metrics: of the split.
        class_names: in label order.
        split: name of the split.
        folder: where the rest was written, to be said.
        console: where.
    """
    rows = [
        ("pictures", f"{metrics.pictures:,}", ""),
        ("top-1", f"{metrics.top1:.2%}", _interval(metrics.top1_interval)),
        ("top-5", f"{metrics.top5:.2%}", _interval(metrics.top5_interval)),
        ("mean of the classes", f"{metrics.mean_class_accuracy:.2%}", ""),
        ("loss", f"{metrics.loss:.3f}", ""),
    ]
    table = Table(title=f"split {split}", title_justify="left", show_header=False, box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    confused = most_confused(metrics.confusion, _SHOWN_PAIRS)
    if confused:
        table = Table("pictures", "of", "taken for", title="most confused", box=None)
        for true, predicted, count in confused:
            table.add_row(str(count), class_names[true], class_names[predicted])
        console.print(table)
    console.print(
        f"written  {folder} (metrics.json, per_class.csv, confused.csv, confusion.csv, "
        "confusion.png)",
        soft_wrap=True,
    )


def _interval(interval: tuple[float, float]) -> str:
    return f"95 % interval {interval[0]:.2%} to {interval[1]:.2%}"


def write(
    folder: epath.Path, metrics: Metrics, class_names: tuple[str, ...], trained: Trained
) -> None:
    """Writes metrics.json, per_class.csv, confused.csv, confusion.csv and confusion.png.

    Args:
        folder: made if it is missing.
        metrics: of the split.
        class_names: in label order.
        trained: the model, for the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "step": trained.step,
        "model": trained.run.config.model.model,
        **metrics.to_json(),
    }
    (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    confusion = metrics.confusion
    totals, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    per_class = [
        (
            name,
            int(totals[i]),
            int(confusion[i, i]),
            _share(confusion[i, i], totals[i]),
            _share(confusion[i, i], predicted[i]),
        )
        for i, name in enumerate(class_names)
    ]
    _write_csv(
        folder / "per_class.csv",
        ("class", "pictures", "correct", "accuracy", "precision"),
        per_class,
    )
    _write_csv(
        folder / "confused.csv",
        ("class", "taken_for", "pictures", "share"),
        [
            (class_names[i], class_names[j], n, _share(n, totals[i]))
            for i, j, n in most_confused(confusion, _PAIRS)
        ],
    )
    _write_csv(
        folder / "confusion.csv",
        ("class", *class_names),
        [(name, *row) for name, row in zip(class_names, confusion.tolist(), strict=True)],
    )
    plot_confusion(folder / "confusion.png", confusion, class_names)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else ""


def _write_csv(path: epath.Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_text(text.getvalue())


def plot_confusion(path: epath.Path, confusion: np.ndarray, class_names: tuple[str, ...]) -> None:
    """Draws a confusion matrix, rows in share of the class, in a size that keeps names readable.

    Args:
        path: of the PNG.
        confusion: int (classes, classes).
        class_names: in label order.
    """
    from matplotlib.figure import Figure

    classes = len(class_names)
    annotated = classes <= _ANNOTATED
    side, font = (3 + 0.55 * classes, 9) if annotated else (4 + 0.12 * classes, 6)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    ticks = range(classes)
    axes.set_xticks(ticks, class_names, rotation=90, fontsize=font)
    axes.set_yticks(ticks, class_names, fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(
        f"{int(confusion.sum()):,} pictures, colour: share of the true class",
        fontsize=side * 0.8 + 5,
    )
    if annotated:
        for i, j in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(confusion[i, j]), ha="center", va="center", fontsize=9, color=color)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    with path.open("wb") as file:
        figure.savefig(file, format="png")
