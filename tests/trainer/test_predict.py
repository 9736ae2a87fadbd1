"""From a picture file to classes: the same logits as evaluation gives for the stored record."""

import io
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from pipeline import layouts
from pipeline.__main__ import main as pipeline_main
from pipeline.sample import SampleOptions, draw
from trainer import data, evaluate, metadata, predict, step
from trainer.checkpoints import LATEST, Checkpoints, RunRecord
from trainer.config import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from trainer.devices import Devices
from trainer.errors import UsageError

RECIPE = TrainConfig(
    model=ModelConfig(model="small", width=6),
    augment=AugmentConfig(test_size=28, test_crop=24),
    run=RunConfig(batch_size=8),
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    draw(str(folder), SampleOptions(train=1, test=1))
    return folder


def preprocess(sample: Path, folder: Path, *flags: str) -> metadata.DatasetInfo:
    handler = signal.getsignal(signal.SIGINT)
    try:
        code = pipeline_main(
            [
                "preprocess",
                f"--data_dir={sample}",
                f"--output_dir={folder}",
                "--image_size=32",
                "--runner=FnApiRunner",
                "--direct_running_mode=in_memory",
                *flags,
            ]
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    assert code == 0
    return metadata.read(folder)


def untrained(info: metadata.DatasetInfo, model_dir: Path) -> Path:
    """Saves a model whose weights are random, also those of its classifier."""
    program = step.build(
        RECIPE,
        classes=info.num_classes,
        image_size=info.image_size,
        total_steps=1,
        platform="cpu",
    )
    state = step.init_state(program)
    kernel = state["weights"]["logits.kernel"]
    state["weights"]["logits.kernel"] = (
        np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    )
    state["step"] = np.int32(1)
    with Checkpoints(model_dir / LATEST) as saved:
        saved.save(1, Devices.of().replicate(state), RunRecord.of(RECIPE, info, 1))
    return model_dir


@pytest.fixture(scope="module")
def crops(sample, tmp_path_factory) -> metadata.DatasetInfo:
    """Boxes cut out, five bits a pixel."""
    return preprocess(sample, tmp_path_factory.mktemp("crops"), "--crop=box", "--encoding=packed")


@pytest.fixture(scope="module")
def model_dir(crops, tmp_path_factory) -> Path:
    return untrained(crops, tmp_path_factory.mktemp("model"))


def run(model_dir: Path, *images: Path | str, box: str | None = None, top: int = 3):
    """Returns the number of bad files, the JSON rows, and the text for people."""
    texts = []
    for as_json in (True, False):
        stream = io.StringIO()
        bad = predict.predict(
            model_dir,
            [str(image) for image in images],
            box,
            top=top,
            as_json=as_json,
            console=Console(file=stream, width=100),
        )
        texts.append(stream.getvalue())
    return bad, [json.loads(line) for line in texts[0].splitlines()], texts[1]


def stored_logits(info: metadata.DatasetInfo, model: evaluate.Trained) -> dict[int, np.ndarray]:
    """Returns what evaluation makes of each record of the test split, by the hash of its id."""
    batches = list(data.eval_batches(info, "test", global_batch=8))
    logits, _ = model.logits(batches)
    hashes = np.concatenate([batch["id_hash"][batch["mask"]] for batch in batches])
    return dict(zip(hashes.tolist(), logits, strict=True))


@pytest.mark.parametrize("flags", [("--encoding=packed", "--crop=box"), ("--encoding=png",)])
def test_a_source_picture_gives_the_logits_of_its_record(
    flags, sample, crops, model_dir, tmp_path, request
):
    if "--crop=box" in flags:
        info, folder = crops, model_dir
    else:
        info = preprocess(sample, tmp_path / "data", *flags)
        folder = untrained(info, tmp_path / "model")
    model = evaluate.restore(folder, Devices.of(jax.devices()[:2]))
    stored = stored_logits(info, model)
    images = [image for image in layouts.find(str(sample)).images if image.split == "test"]
    assert len(images) == len(stored) == 10
    for image in images:
        box = image.box if "--crop=box" in flags else None
        (found,) = predict.classify(model, [Path(image.path)], box)
        key = int(tf.strings.to_hash_bucket_fast(image.id, 2**32))
        np.testing.assert_allclose(found.logits, stored[key], rtol=1e-4, atol=1e-5)


def test_the_likeliest_classes_come_first(sample, model_dir, crops):
    picture = sample / "cars_test/00001.jpg"
    bad, (row,), text = run(model_dir, picture, box="1,1,90,90")
    assert bad == 0
    assert row["image"] == str(picture)
    odds = [entry["probability"] for entry in row["classes"]]
    assert odds == sorted(odds, reverse=True)
    assert len(odds) == 3
    assert {entry["name"] for entry in row["classes"]} <= set(crops.class_names)
    assert row["classes"][0]["name"] in text
    everything = run(model_dir, picture, top=99)[1][0]["classes"]
    assert len(everything) == 10
    assert sum(entry["probability"] for entry in everything) == pytest.approx(1, abs=1e-4)


def test_a_folder_is_searched_and_a_bad_file_costs_a_line(sample, model_dir, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jpg").write_bytes((sample / "cars_test/00001.jpg").read_bytes())
    (tmp_path / "b.JPEG").write_bytes(b"no picture")
    (tmp_path / "deep/c.jpg").write_bytes((sample / "cars_test/00002.jpg").read_bytes())
    (tmp_path / "notes.txt").write_text("not looked at")
    bad, rows, text = run(model_dir, tmp_path)
    assert bad == 1
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "b.JPEG", "c.jpg"]
    assert rows[1]["error"].startswith("not_an_image")
    assert "b.JPEG: not_an_image" in text


def test_a_model_of_box_crops_says_what_a_missing_box_means(sample, model_dir):
    picture = sample / "cars_test/00001.jpg"
    assert "without --box the whole picture" in run(model_dir, picture)[2]
    assert "--box" not in run(model_dir, picture, box="1,1,50,50")[2]


@pytest.mark.parametrize(
    ("box", "count", "said"),
    [
        ("1,2,3", 1, "--box=1,2,3 is not four whole numbers"),
        ("1,2,x,4", 1, "not four whole numbers"),
        ("9,1,3,4", 1, "--box=9,1,3,4 is no rectangle"),
        ("0,1,3,4", 1, "no rectangle"),
        ("1,1,3,4", 2, "--box=1,1,3,4 is of one picture, but 2 are given"),
    ],
)
def test_impossible_boxes_are_refused(sample, model_dir, box, count, said):
    with pytest.raises(UsageError, match=said):
        run(model_dir, *[sample / "cars_test/00001.jpg"] * count, box=box)


def test_a_box_for_a_model_of_whole_pictures_is_refused(sample, trained):
    with pytest.raises(UsageError, match="was trained on whole pictures"):
        run(trained, sample / "cars_test/00001.jpg", box="1,1,9,9")


@pytest.mark.parametrize("name", ["none.jpg", "empty"])
def test_paths_that_hold_no_picture_are_refused(tmp_path, model_dir, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=name):
        run(model_dir, tmp_path / name)
