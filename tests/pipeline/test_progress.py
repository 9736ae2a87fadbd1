import io
import json
import os
import re
import time

import pytest
from rich.console import Console

from pipeline import plan as plans
from pipeline import progress, tally
from pipeline.shards import Shard
from tests.pipeline import folders, object_store
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
    watch = progress._Watch(*made)
    watch._look_seconds = 0.0
    assert watch.poll_seconds == 0.01
    watch._look_seconds = 0.1  # a folder of very many shards
    assert watch.poll_seconds == 2.0
    watch._output_dir = "gs://bucket/out"
    assert watch.poll_seconds == progress.REMOTE_POLL_SECONDS


def test_a_shard_under_work_counts_by_the_picture_until_its_sidecar_is_there(made, monkeypatch):
    monkeypatch.setattr(tally, "SECONDS", 0.0)
    output_dir, plan = made
    shard = plan.shards("test")[0]
    before = progress._Watch(output_dir, plan).done
    aside, path = hide(output_dir, shard)
    watch = progress._Watch(output_dir, plan)
    of_shard = before - watch.done
    assert of_shard > 2
    with tally.tally(output_dir, shard) as tell:
        for number, rejected in enumerate((False, True, False), 1):
            tell(rejected)
            watch.update()
            assert watch.done == before - of_shard + number
        assert watch.rejects == 2  # one in another shard
        later = progress._Watch(output_dir, plan)
        assert later.resumed == before - of_shard  # what is under work is no work of earlier runs
        os.rename(aside, path)
        watch.update()
        assert watch.done == before  # not counted twice
    watch.update()
    assert (watch.done, watch.rejects) == (before, 1)


def test_a_tally_that_a_killed_worker_left_is_removed_and_half_a_one_is_passed_over(made):
    output_dir, plan = made
    shard = plan.shards("test")[0]
    aside, _ = hide(output_dir, shard)
    left = os.path.join(output_dir, "_shards", tally.PREFIX + shard.file_name)
    with open(left, "w") as file:
        file.write("3")
    assert progress._Watch(output_dir, plan).done < 17
    plans.remove_temporaries(output_dir)
    assert not os.path.exists(left)
    assert os.path.exists(aside)


def test_on_an_object_store_nothing_is_tallied(monkeypatch):
    monkeypatch.setattr(tally, "SECONDS", 0.0)
    monkeypatch.setattr(object_store, "OBJECTS", {})
    with tally.tally("fake://bucket/out", Shard("train", 0, 1)) as tell:
        tell(False)
    assert object_store.OBJECTS == {}
