"""Folders on gs://: every path keeps its form, and all that is written but the checkpoints' arrays.

A folder stands in for the bucket, below `etils.epath`. What TensorFlow and TensorStore themselves
do on gs:// cannot be had here, and is unverified.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath

from trainer import __main__ as command_line
from trainer import checkpoints, evaluate, metadata, progress, train
from trainer.checkpoints import Checkpoints
from trainer.progress import Evaluation, History, Report


class Bucket:
    """The backend of local files, with `gs://bucket` standing for a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getattr__(self, name):
        def call(*paths, **options):
            return getattr(backend.os_backend, name)(*map(self._local, paths), **options)

        return call

    def _local(self, path):
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
        if isinstance(text, str) and "bucket" in text:
            assert text.startswith("gs://bucket/"), text
            return str(self._folder / text.removeprefix("gs://bucket/"))
        return text


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(gpath.backend_lib, "tf_backend", Bucket(tmp_path))
    return tmp_path


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_the_command_line_keeps_the_form_of_a_path(command):
    rest = ["a.jpg"] if command == "predict" else ["--data_dir=gs://bucket/data"]
    flags = command_line.parser().parse_args([command, "--model_dir=gs://bucket/model", *rest])
    assert str(flags.model_dir / "history.json") == "gs://bucket/model/history.json"
    assert command == "predict" or flags.data_dir == "gs://bucket/data"


def test_checkpoints_keep_the_form_of_a_path(monkeypatch):
    opened = []
    monkeypatch.setattr(
        checkpoints.ocp, "CheckpointManager", lambda folder, **_: opened.append(folder)
    )
    Checkpoints(epath.Path("gs://bucket/model/checkpoints"))
    Checkpoints(epath.Path("model/best"))
    assert [str(folder) for folder in opened] == [
        "gs://bucket/model/checkpoints",
        str(Path("model/best").absolute()),
    ]


def test_metadata_and_shards_are_found(bucket, small_data):
    (bucket / "data").symlink_to(small_data)
    info = metadata.read("gs://bucket/data")
    assert info.class_names == metadata.read(small_data).class_names
    paths = info.splits["train"].shard_paths
    assert all(path.startswith("gs://bucket/data/stanford_cars-train") for path in paths)


def test_what_a_run_writes_arrives(bucket, trained):
    model = epath.Path("gs://bucket/model")
    with Checkpoints(epath.Path(trained / "checkpoints")) as saved:
        run = saved.read_run(60)
    train._write_settings(model, run)
    assert json.loads((bucket / "model/config.json").read_text()) == run.config.to_json()

    history = History(model / "history.json", 0)
    history.reports += [Report(**{**REPORT, "step": step}) for step in (10, 20)]
    history.evaluations.append(Evaluation(20, 2.0, "test", 1.0, 0.5, 0.9))
    history.save()
    again = History(model / "history.json", 10)
    assert [row.step for row in again.reports] == [10]
    progress.plot_curves(model / "curves.png", history)
    assert (bucket / "model/curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (bucket / "model").iterdir()} == {
        *("config.json", "curves.png", "history.json", "preprocessing.json")
    }


def test_what_evaluate_writes_arrives(bucket):
    logits, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 1])
    metrics = evaluate.measure(logits, labels)
    folder = epath.Path("gs://bucket/model/evaluation/test")
    folder.mkdir(parents=True)
    evaluate._write_csv(folder / "confusion.csv", ("a", "b"), [("1", "ü, 2")])
    evaluate.plot_confusion(folder / "confusion.png", metrics.confusion, ("a", "b", "c"))
    written = bucket / "model/evaluation/test"
    assert (written / "confusion.csv").read_text() == 'a,b\n1,"ü, 2"\n'
    assert (written / "confusion.png").read_bytes().startswith(b"\x89PNG")


REPORT = {name: 1.0 for name in Report.__dataclass_fields__ if name not in ("step", "utilisation")}
