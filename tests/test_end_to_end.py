"""The two command lines, from drawn pictures to a prediction, as a user types them."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from pipeline.__main__ import main
from pipeline.sample import CLASS_NAMES, SampleOptions, draw

IN_PROCESS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory")
SIZE = 32


def in_process(*arguments: str) -> None:
    """Runs the pipeline's command line in this process: a start of Python costs seconds."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main(arguments) == 0
    finally:
        signal.signal(signal.SIGINT, handler)


def python_m(*arguments: str) -> str:
    """Runs `python -m ...` and returns what it printed; a failure shows what it said."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def preprocess(data_dir: pathlib.Path, output_dir: pathlib.Path, *flags: str) -> list[str]:
    """Returns the arguments that preprocess a sample."""
    return [
        "preprocess",
        f"--data_dir={data_dir}",
        f"--output_dir={output_dir}",
        f"--image_size={SIZE}",
        "--examples_per_shard=16",
        "--max_reject_fraction=0.2",
        *flags,
    ]


def shards(output_dir: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output_dir.glob("stanford_cars-*")}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> pathlib.Path:
    """Returns a folder with a drawn sample in every layout, flaws and all."""
    root = tmp_path_factory.mktemp("samples")
    for layout in ("devkit", "car_ims", "kaggle", "folders"):
        options = SampleOptions(
            layout=layout, train=4, test=2, validation=layout == "folders", flaws=True
        )
        draw(str(root / layout), options)
    return root


@pytest.fixture(scope="module")
def made(samples, tmp_path_factory) -> pathlib.Path:
    """Returns the shards of the devkit sample, made by the default engine."""
    output_dir = tmp_path_factory.mktemp("made") / "shards"
    told = python_m("pipeline", *preprocess(samples / "devkit", output_dir))
    assert "Traceback" not in told
    return output_dir


@pytest.mark.parametrize("layout", ["devkit", "car_ims", "kaggle", "folders"])
def test_every_layout_is_read_and_opens_with_tfds_and_with_plain_tf_data(samples, tmp_path, layout):
    in_process(*preprocess(samples / layout, tmp_path, *IN_PROCESS))
    in_process("verify", str(tmp_path))
    info = json.loads((tmp_path / "preprocessing.json").read_text())
    assert info["has_boxes"] == (layout != "folders")
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    reasons = {reject["reason"] for reject in rejects}
    assert reasons >= {"empty", "truncated", "not_an_image"}
    assert ("missing" in reasons) == (layout != "folders")

    builder = tfds.builder_from_directory(str(tmp_path))
    # Without annotation files the folders' names are all there is, and `/` cannot be one of them.
    names = sorted(name.replace("/", "-") for name in CLASS_NAMES)
    expected = names if layout == "folders" else list(CLASS_NAMES)
    assert builder.info.features["label"].names == expected
    for split, split_info in builder.info.splits.items():
        examples = list(tfds.as_numpy(builder.as_dataset(split)))
        paths = sorted(str(path) for path in tmp_path.glob(f"stanford_cars-{split}.*"))
        plain = [
            tf.io.parse_single_example(
                record,
                {
                    "id": tf.io.FixedLenFeature([], tf.string),
                    "label": tf.io.FixedLenFeature([], tf.int64),
                    "bbox": tf.io.FixedLenFeature([4], tf.float32),
                    "indices": tf.io.FixedLenFeature([], tf.string),
                },
            )
            for record in tf.data.TFRecordDataset(paths)
        ]
        assert len(examples) == len(plain) == split_info.num_examples > 0
        by_id = {bytes(example["id"]): example for example in examples}
        for record in plain:
            example = by_id[record["id"].numpy()]
            assert example["label"] == record["label"].numpy()
            np.testing.assert_array_equal(example["bbox"], record["bbox"])
            raw = np.frombuffer(record["indices"].numpy(), np.uint8).reshape(SIZE, SIZE)
            np.testing.assert_array_equal(example["indices"], raw)


def test_another_number_of_workers_gives_the_same_bytes(samples, made, tmp_path):
    python_m("pipeline", *preprocess(samples / "devkit", tmp_path, "--direct_num_workers=3"))
    reference = shards(made)
    assert len(reference) > 2
    assert shards(tmp_path) == reference


def test_a_model_is_trained_evaluated_and_used(samples, made, tmp_path):
    model_dir = tmp_path / "model"
    common = (f"--data_dir={made}", f"--model_dir={model_dir}")
    python_m("trainer", "train", *common, "--config=demo", "--epochs=1", "--batch_size=8")
    told = python_m("trainer", "evaluate", *common)
    assert "top-1" in told
    assert "top-5" in told
    files = {path.name for path in model_dir.rglob("*")}
    assert {"confusion.png", "confusion.csv"} <= files
    picture = samples / "devkit" / "cars_test" / "00001.jpg"
    told = python_m("trainer", "predict", f"--model_dir={model_dir}", str(picture))
    assert any(name in told for name in CLASS_NAMES)


def test_the_pipeline_imports_neither_tensorflow_nor_jax():
    code = (
        "import sys, pkgutil, importlib, pipeline\n"
        "for module in pkgutil.walk_packages(pipeline.__path__, 'pipeline.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "heavy = {'tensorflow', 'jax', 'keras', 'sklearn', 'scipy.io', 'matplotlib', 'trainer'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
