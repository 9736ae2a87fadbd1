"""What a run shows and keeps."""

import dataclasses
import io
import json
import re
import struct

import numpy as np
import pytest
from rich.console import Console

from trainer.progress import Evaluation, History, Monitor, Plan, Report, duration, plot_curves

PLAN = Plan(
    total_steps=20,
    epoch_steps=5,
    batch_size=8,
    log_every=4,
    learning_rate=lambda step: 0.1 * (step + 1),
)


# Four devices that do a million operations a second, and pictures of a thousand.
ACCELERATED = dataclasses.replace(PLAN, devices=4, picture_flops=1e3, device_flops=1e6)


def run(history, console, events=None, start=0, plan=PLAN):
    with Monitor(console, history, start=start, plan=plan, events=events) as monitor:
        for step in range(start + 1, 21):
            monitor.step_done(step, loss=float(step), accuracy=0.5, waited=0.0)
        monitor.evaluated(Evaluation(20, 4.0, "test", 0.25, 0.875, 1.0))


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history.json", 0)


def test_reports_are_means_of_the_steps_since_the_last(history):
    run(history, Console(quiet=True))
    # The first step compiles and is left out of the first report.
    assert [(row.step, row.loss) for row in history.reports] == [
        (4, 3.0), (8, 6.5), (12, 10.5), (16, 14.5), (20, 18.5)
    ]  # fmt: skip
    assert [row.epoch for row in history.reports] == [0.8, 1.6, 2.4, 3.2, 4.0]
    assert history.reports[0].learning_rate == pytest.approx(0.4)


def test_a_log_gets_plain_lines(history):
    stream = io.StringIO()
    run(history, Console(file=stream, width=40))
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"step 8/20  epoch 1\.60  loss 6\.500  accuracy 50\.0%  lr 8\.00e-01  [\d,]+ images/s  "
        r"input wait 0%  ends in 0:00",
        lines[2],
    )
    assert lines[-1] == "test after epoch 4:  top-1 87.50%  top-5 100.00%  loss 0.250"
    assert "\x1b" not in stream.getvalue()


def test_utilisation_is_the_share_of_what_the_devices_could_do(history, tmp_path):
    stream = io.StringIO()
    run(history, Console(file=stream, width=40), plan=ACCELERATED)
    for report in history.reports:
        # 4e6 operations a second are 4,000 such pictures.
        assert report.utilisation == pytest.approx(report.images_per_second / 4000)
        assert report.device_images_per_second == pytest.approx(report.images_per_second / 4)
    assert re.search(
        r"images/s \([\d,.]+ a device\)  utilisation [\d,.]+%  input wait", stream.getvalue()
    )
    history.save()
    again = History(tmp_path / "history.json", 20)
    assert again.reports == history.reports


def test_utilisation_is_not_told_where_the_peak_is_not_known(history):
    stream = io.StringIO()
    run(history, Console(file=stream), plan=dataclasses.replace(ACCELERATED, device_flops=None))
    assert history.reports[0].utilisation is None
    assert "utilisation" not in stream.getvalue()


def test_reports_of_earlier_releases_are_read(history, tmp_path):
    run(history, Console(quiet=True))
    history.save()
    rows = json.loads((tmp_path / "history.json").read_text())
    for row in rows["train"]:
        del row["utilisation"], row["device_images_per_second"]
    (tmp_path / "history.json").write_text(json.dumps(rows))
    assert [row.step for row in History(tmp_path / "history.json", 20).reports] == [
        4, 8, 12, 16, 20
    ]  # fmt: skip


def test_a_terminal_gets_a_bar(history):
    stream = io.StringIO()
    run(history, Console(file=stream, force_terminal=True, width=150))
    assert "images/s" in stream.getvalue()
    assert "step 8/20 " not in stream.getvalue()


def test_history_forgets_what_came_after_the_checkpoint(history, tmp_path):
    run(history, Console(quiet=True))
    history.save()
    again = History(tmp_path / "history.json", 12)
    assert again.reports == history.reports[:3]
    assert again.evaluations == []
    run(again, Console(quiet=True), start=12)
    assert [row.step for row in again.reports] == [4, 8, 12, 16, 20]


def test_history_is_json_for_others(history, tmp_path):
    run(history, Console(quiet=True))
    history.save()
    rows = json.loads((tmp_path / "history.json").read_text())
    assert rows["evaluation"] == [
        {"step": 20, "epoch": 4.0, "split": "test", "loss": 0.25, "top1": 0.875, "top5": 1.0}
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["history.json"]


def test_tensorboard_finds_every_number(history, tmp_path):
    import tensorflow as tf

    run(history, Console(quiet=True), events=tmp_path / "events", plan=ACCELERATED)
    (path,) = (tmp_path / "events").iterdir()
    found = {}
    for raw in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(raw.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name in ("scalars", "")
            found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    assert found["train/loss", 8] == 6.5
    assert found["test/top1", 20] == 0.875
    assert {tag for tag, _ in found} >= {
        "train/images_per_second",
        "train/device_images_per_second",
        "train/utilisation",
        "train/learning_rate",
    }


def test_curves_are_drawn(tmp_path, history):
    history.reports = [Report(n, n / 5, 2 / n, n / 20, 0.1, 100.0, 0.0) for n in range(1, 21)]
    history.evaluations = [Evaluation(n, n / 5, "test", 2 / n, n / 20, 1.0) for n in (10, 20)]
    plot_curves(tmp_path / "curves.png", history)
    header = (tmp_path / "curves.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    assert (width, height) == (1000, 650)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3723, "1:02:03")]
)
def test_duration(seconds, text):
    assert duration(np.float64(seconds)) == text
