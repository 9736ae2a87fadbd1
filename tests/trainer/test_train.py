"""The training loop: killed, interrupted and continued runs end as undisturbed ones; refusals."""

import dataclasses
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from tests.trainer import shards
from tests.trainer.conftest import TOTAL_STEPS, train_here
from trainer import __main__ as command_line
from trainer import step, train
from trainer.config import ModelConfig, RunConfig, TrainConfig
from trainer.errors import NonFiniteLossError, UsageError

TINY = TrainConfig(
    model=ModelConfig(model="small", width=6),
    run=RunConfig(epochs=2, batch_size=16, tensorboard=False),
)


def record(model_dir: Path, at: int = TOTAL_STEPS) -> dict:
    """Returns what a checkpoint says of itself, read without the trainer."""
    return json.loads((model_dir / f"checkpoints/{at}/run/metadata").read_text())


def steps_saved(model_dir: Path) -> list[int]:
    folder = model_dir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def start(data: Path, model_dir: Path) -> subprocess.Popen:
    """Starts the run of `trained` as a process, with the XLA flags of this one.

    A client of one device splits its work over threads in another way than one of eight, which
    changes the last bits.
    """
    code = (
        "import sys; from tests.trainer.conftest import train_here; "
        f"sys.exit(train_here({str(data)!r}, {str(model_dir)!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_leaves_what_it_promises(trained):
    assert steps_saved(trained) == [TOTAL_STEPS - 5, TOTAL_STEPS]
    assert (trained / "preprocessing.json").exists()
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((trained / "config.json").read_text())["model"]["width"] == 6
    history = json.loads((trained / "history.json").read_text())
    assert [row["step"] for row in history["train"]] == list(range(10, TOTAL_STEPS + 1, 10))
    assert [row["step"] for row in history["evaluation"]] == [30, 60]
    assert history["evaluation"][-1]["top1"] > 0.6  # 1 / 6 by chance
    assert list((trained / "events").iterdir())


def test_a_checkpoint_says_all_about_its_run(trained, small_data):
    saved = record(trained)
    assert saved["step"] == TOTAL_STEPS
    run = saved["run"]
    assert (
        run["config"]["run"] | {"seed": 0, "batch_size": 16, "data_streams": 8}
        == (run["config"]["run"])
    )
    assert run["class_names"] == (small_data / "label.labels.txt").read_text().splitlines()
    assert run["data_fingerprint"] == "00ff"
    assert run["preprocessing"]["options"]["colors"] == 8
    assert run["versions"]["jax"] == jax.__version__
    assert saved["sha256"].keys() == saved["shapes"].keys()
    assert {name.split(".")[0] for name in saved["sha256"]} == {
        "step",
        "weights",
        "statistics",
        "optimizer",
        "ema",
    }


def test_a_run_killed_at_a_random_moment_ends_with_the_weights_of_one_never_killed(
    small_data, trained, tmp_path
):
    moment = np.random.default_rng().integers(1, TOTAL_STEPS - 20)
    run = start(small_data, tmp_path)
    deadline = time.monotonic() + 120
    while not any(at >= moment for at in steps_saved(tmp_path)):
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.kill()
    run.communicate()
    assert TOTAL_STEPS not in steps_saved(tmp_path), "finished before it could be killed"
    run = start(small_data, tmp_path)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    assert "continues after step" in output
    assert record(tmp_path)["sha256"] == record(trained)["sha256"], f"killed at {moment}"
    ours, theirs = (json.loads((f / "history.json").read_text()) for f in (tmp_path, trained))
    assert [row["step"] for row in ours["evaluation"]] == [30, 60]
    assert ours["evaluation"] == theirs["evaluation"]


class _SignallingConsole(Console):
    """Sends this process SIGTERM when the report of step 20 is printed."""

    def print(self, *args, **kwargs):
        if str(args[0]).startswith("step 20/"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_exits_with_a_code_of_its_own(
    small_data, trained, tmp_path, monkeypatch, capsys
):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(command_line, "Console", _SignallingConsole)
        assert train_here(small_data, tmp_path) == 75
    (stopped,) = re.findall(r"saved step (\d+) of 60", capsys.readouterr().err)
    assert 20 <= int(stopped) <= 23  # the host runs two steps ahead
    assert steps_saved(tmp_path)[-1] == int(stopped)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert train_here(small_data, tmp_path) == 0
    assert record(tmp_path)["sha256"] == record(trained)["sha256"]


def test_a_finished_run_is_left_as_it_is(small_data, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = record(tmp_path)
    assert train_here(small_data, tmp_path) == 0
    assert "was trained before" in capsys.readouterr().out
    assert record(tmp_path) == before


def test_what_changes_no_number_may_change_when_a_run_continues(small_data, trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    assert train_here(small_data, tmp_path, "--cache", "--log_every=3", "--tensorboard=false") == 0


def test_a_trace_holds_the_steps_asked_for_and_changes_no_number(small_data, trained, tmp_path):
    assert train_here(small_data, tmp_path, "--profile_steps=3") == 0
    assert record(tmp_path)["sha256"] == record(trained)["sha256"]
    (run,) = (tmp_path / "profile/plugins/profile").iterdir()
    assert list(run.glob("*.xplane.pb"))  # TensorBoard's
    events = json.loads(gzip.decompress((run / "perfetto_trace.json.gz").read_bytes()))
    steps = {e["args"]["step_num"] for e in events["traceEvents"] if e.get("name") == "train"}
    assert steps == {"6", "7", "8"}


def test_a_trace_longer_than_the_run_ends_with_it(small_data, tmp_path):
    assert train_here(small_data, tmp_path, "--epochs=1", "--profile_steps=9") == 0
    assert list((tmp_path / "profile/plugins/profile").glob("*/perfetto_trace.json.gz"))


@pytest.mark.parametrize(
    ("data", "flags", "said"),
    [
        ({}, ["--seed=1"], "--seed: 0 / 1"),
        ({}, ["--model=resnet"], "--model: small / resnet"),
        ({}, ["--width=9"], "--width: 6 / 9"),
        ({}, ["--epochs=41"], "--epochs: 20 / 41"),
        ({"num_classes": 5}, [], r"trained on 6 classes, .* has 5; .* class 5: 'Make5.*' / none"),
        ({"colors": 9}, [], "trained on pictures of 8 colours, those of .* have 9 colours"),
        ({"fingerprint": "11ee"}, [], "data fingerprint: 00ff / 11ee"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_with_both_sides_named(
    small_data, trained, tmp_path, capsys, data, flags, said
):
    folder = small_data
    if data:
        folder = tmp_path / "data"
        options = {"image_size": 16, "colors": 8, "num_classes": 6, **data}
        shards.write(folder, {"train": 48, "test": 23}, **options)
    shutil.copytree(trained, tmp_path / "model")
    assert train_here(folder, tmp_path / "model", *flags) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert len(error.splitlines()) <= 2


def test_a_batch_that_devices_cannot_share_is_an_error_before_anything_is_compiled(
    small_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(step, "build", lambda *_, **__: pytest.fail("went on"))
    recipe = TrainConfig(run=RunConfig(batch_size=20, data_streams=4))
    with pytest.raises(UsageError, match="over 8 devices; the nearest .* fit: 16 and 24"):
        train.train(recipe, str(small_data), tmp_path, Console(quiet=True))


def test_a_batch_larger_than_the_data_is_an_error(small_data, tmp_path):
    with pytest.raises(UsageError, match="--batch_size=64 is too large"):
        train.train(TrainConfig(), str(small_data), tmp_path, Console(quiet=True))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    small_data, tmp_path, monkeypatch
):
    def poisoned(program, devices):
        def train_step(state, batch):
            loss = np.float32("nan" if state["step"] == 3 else 1)
            return {**state, "step": state["step"] + 1}, {"loss": loss, "accuracy": loss}

        return train_step

    monkeypatch.setattr(step, "make_train_step", poisoned)
    with pytest.raises(NonFiniteLossError, match="loss of step 4 is nan"):
        train.train(TINY, str(small_data), tmp_path, Console(quiet=True))
    assert steps_saved(tmp_path) == []


def test_the_best_by_validation_is_kept_and_the_test_split_never_chooses(tmp_path, monkeypatch):
    counts = {"train": 48, "test": 23, "validation": 9}
    shards.write(tmp_path / "data", counts, image_size=16, colors=8, num_classes=6)
    scores = iter([0.5, 0.75, 0.25, 0.75])
    real = train.evaluate.measure

    def measured(logits, labels):
        assert len(labels) == 9
        return dataclasses.replace(real(logits, labels), top1=next(scores))

    monkeypatch.setattr(train.evaluate, "measure", measured)
    model_dir = tmp_path / "model"
    assert train_here(tmp_path / "data", model_dir, "--evaluate_every=5") == 0
    history = json.loads((model_dir / "history.json").read_text())
    assert [row["split"] for row in history["evaluation"]] == ["validation"] * 4
    assert [p.name for p in (model_dir / "best").iterdir() if p.name.isdigit()] == ["30"]
