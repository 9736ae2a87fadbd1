import io
import json
import os
import re
import time

import pytest
from rich.console import Console

from pipeline import progress
from tests.pipeline import folders
from tests.pipeline.test_job import write_one_by_one


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    data_dir = folders.draw(tmp_path / "data")
    with open(os.path.join(data_dir, "train", folders.CLASSES[0], "00000.jpg"), "wb") as file:
        file.write(b"no picture")
    output_dir = str(tmp_path / "out")
    return output_dir, write_one_by_one(data_dir, output_dir)  # 17 pictures in 5 shards


def hide(output_dir, shard) -> tuple[str, str]:
    """Moves a sidecar aside; returns both names."""
    path = os.path.join(output_dir, shard.sidecar_name)
    os.rename(path, path + ".aside")
    return path + ".aside", path


def show(made, terminal: bool, work) -> tuple[int, str]:
    """Runs `work` under the progress display; returns what was done before, and the display."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with progress.progress(*made, console) as resumed:
        work()
    return resumed, console.file.getvalue()


def wait() -> None:
    time.sleep(0.2)


def test_a_log_gets_plain_lines_with_all_that_is_done(made):
    resumed, shown = show(made, False, wait)
    assert resumed == 17
    assert "17 of 17 pictures, 0/s, 1 rejected\n" in shown
    assert "\x1b" not in shown


def test_a_terminal_gets_a_bar(made):
    _, shown = show(made, True, wait)
    assert "17/17" in shown
    assert "1 rejected" in shown
    assert "\x1b[" in shown


def test_only_what_this_run_does_counts_for_the_rate(made):
    output_dir, plan = made
    aside, path = hide(output_dir, plan.shards("test")[0])

    def work():
        wait()
        os.rename(aside, path)
        wait()

    resumed, shown = show(made, False, work)
    new = 17 - resumed
    assert 0 < new < 17
    lines = shown.splitlines()
    assert lines[0].startswith(f"{resumed} of 17 pictures, 0/s, ")
    assert re.match(r"17 of 17 pictures, [1-9]\d*/s, 0 s left, ", lines[-1])


def test_the_end_is_shown_even_if_it_comes_between_two_looks(made, monkeypatch):
    monkeypatch.setattr(progress, "POLL_SECONDS", 60.0)
    output_dir, plan = made
    aside, path = hide(output_dir, plan.shards("test")[0])
    _, shown = show(made, True, lambda: os.rename(aside, path))
    assert "17/17" in shown


def test_shards_of_another_run_are_not_done(made):
    output_dir, plan = made
    path = os.path.join(output_dir, plan.shards("test")[0].sidecar_name)
    with open(path) as file:
        sidecar = json.load(file)
    with open(path, "w") as file:
        json.dump({**sidecar, "fingerprint": "another"}, file)
    resumed, _ = show(made, False, lambda: None)
    assert resumed == 17 - sidecar["records"] - len(sidecar["rejects"])


def test_storage_that_fails_for_a_moment_does_not_end_the_display(made, monkeypatch):
    list_folder = progress.storage.list_folder
    calls = []

    def failing_twice(folder):
        calls.append(folder)
        if len(calls) <= 2:
            raise OSError("connection reset")
        return list_folder(folder)

    monkeypatch.setattr(progress.storage, "list_folder", failing_twice)
    resumed, shown = show(made, False, wait)
    assert resumed == 0
    assert "17 of 17" in shown


def test_a_distant_folder_is_looked_at_less_often(made):
    output_dir, plan = made
    assert progress._poll_seconds(progress._Watch(output_dir, plan)) == 0.01
    watch = progress._Watch(output_dir, plan)
    watch._output_dir = "gs://bucket/out"
    assert progress._poll_seconds(watch) == progress.REMOTE_POLL_SECONDS
