"""Metrics against scikit-learn and SciPy, and evaluation that counts every picture once."""

import csv
import json
import struct
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from rich.console import Console
from scipy.stats import binomtest

from trainer import data, evaluate, metadata, models
from trainer.checkpoints import checksums
from trainer.devices import Devices
from trainer.errors import CheckpointError


def draw(classes: int, count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1.5
    return logits, labels


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 20])
def test_metrics_are_those_of_scikit_learn(classes):
    logits, labels = draw(classes)
    predicted, every = logits.argmax(axis=1), np.arange(classes)
    found = evaluate.measure(logits, labels)
    assert found.pictures == 200
    assert found.top1 == sklearn.metrics.accuracy_score(labels, predicted)
    assert found.mean_class_accuracy == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(labels, predicted)
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities, labels=every), rel=1e-5
    )
    in_five = [label in np.argsort(-row)[:5] for row, label in zip(logits, labels, strict=True)]
    assert found.top5 == np.mean(in_five)
    for label, row in enumerate(found.confusion):
        assert row.tolist() == [int((predicted[labels == label] == j).sum()) for j in every]


def test_classes_without_pictures_do_not_count():
    logits, labels = draw(12, count=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate.measure(logits, labels)
    assert found.confusion.shape == (12, 12)
    accuracies = [np.mean(logits.argmax(axis=1)[labels == c] == c) for c in set(labels)]
    assert found.mean_class_accuracy == pytest.approx(np.mean(accuracies))


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (657, 1000)])
def test_the_interval_is_that_of_scipy(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    found = evaluate.wilson(hits / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_most_confused_pairs_leave_out_what_is_right_and_what_never_happened():
    confusion = np.array([[9, 2, 0], [0, 9, 5], [0, 0, 9]])
    assert evaluate.most_confused(confusion, 10) == [(1, 2, 5), (0, 1, 2)]
    assert evaluate.most_confused(confusion, 1) == [(1, 2, 5)]


@pytest.fixture(scope="module")
def expected(trained, small_data):
    """Labels (N,) and logits (N, C) of the test split, picture by picture, from the records."""
    files = sorted(small_data.glob("stanford_cars-test.tfrecord-*"))
    examples = [
        tf.train.Example.FromString(raw.numpy()).features.feature
        for path in files
        for raw in tf.data.TFRecordDataset(str(path))
    ]

    def array(example, name, shape):
        return np.frombuffer(example[name].bytes_list.value[0], np.uint8).reshape(shape)

    pictures = np.stack(
        [array(e, "palette", (8, 3))[array(e, "indices", (16, 16))] for e in examples]
    )
    centred = (pictures.astype(np.float32) - 128) / 128
    restored = evaluate.restore(trained, Devices.of(jax.devices()[:1]))
    apply = jax.jit(lambda x: models.apply(restored.program.model, **restored.state, pictures=x)[0])
    logits = (apply(centred) + apply(centred[:, :, ::-1])) / 2
    labels = [e["label"].int64_list.value[0] for e in examples]
    return np.array(labels), np.asarray(logits)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_every_picture_counts_once_on_any_number_of_devices(count, trained, small_data, expected):
    devices = Devices.of(jax.devices()[:count])
    model = evaluate.restore(trained, devices)
    rows = devices.rows_that_fit(6)
    assert len(expected[0]) % rows
    info = metadata.read(small_data)
    logits, labels = model.logits(data.eval_batches(info, "test", global_batch=rows))
    assert labels.tolist() == expected[0].tolist()
    np.testing.assert_allclose(logits, expected[1], rtol=1e-4, atol=1e-5)


def test_evaluation_uses_the_average_of_the_weights(trained, expected):
    model = evaluate.restore(trained, Devices.of(jax.devices()[:1]))
    record = json.loads((trained / f"checkpoints/{model.step}/run/metadata").read_text())
    for name, digest in checksums(model.state).items():
        assert digest == record["sha256"][f"ema.{name}"]


def test_what_evaluate_writes_agrees_with_itself(trained, small_data, expected, tmp_path, capsys):
    found = evaluate.evaluate(str(small_data), trained, "test", 8, Console(width=100))
    hits = int((expected[1].argmax(axis=1) == expected[0]).sum())
    assert found.top1 == hits / 23
    printed = capsys.readouterr().out
    assert f"{found.top1:.2%}" in printed
    assert "95 % interval" in printed
    folder = trained / "evaluation/test"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["pictures"], metrics["top1"], metrics["step"]) == (23, found.top1, 60)
    rows = list(csv.reader((folder / "confusion.csv").read_text().splitlines()))
    assert np.array_equal(np.array([r[1:] for r in rows[1:]], int), found.confusion)
    per_class = list(csv.DictReader((folder / "per_class.csv").read_text().splitlines()))
    assert sum(int(row["pictures"]) for row in per_class) == 23
    assert sum(int(row["correct"]) for row in per_class) == hits
    confused = list(csv.DictReader((folder / "confused.csv").read_text().splitlines()))
    assert sum(int(row["pictures"]) for row in confused) == 23 - hits
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_training_and_evaluation_agree(trained, small_data):
    history = json.loads((trained / "history.json").read_text())
    found = evaluate.evaluate(str(small_data), trained, "test", 16, Console(quiet=True))
    assert history["evaluation"][-1]["top1"] == found.top1
    assert history["evaluation"][-1]["loss"] == pytest.approx(found.loss, rel=1e-4)


@pytest.mark.parametrize("classes", [8, 196])
def test_the_plot_has_room_for_every_name(tmp_path, classes):
    logits, labels = draw(classes, count=classes * 8)
    names = tuple(f"Chevrolet Silverado 2500HD Regular Cab {n}" for n in range(classes))
    path = tmp_path / "confusion.png"
    evaluate.plot_confusion(path, evaluate.measure(logits, labels).confusion, names)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert min(width, height) > classes * 10  # pixels a name


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no checkpoint; make one with"):
        evaluate.restore(tmp_path, Devices.of())
