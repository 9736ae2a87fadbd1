import contextlib
import os
import pathlib

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import job, layouts, shards, storage, verify
from pipeline.config import PictureOptions
from pipeline.convert import Converter
from pipeline.plan import Plan, PlanError
from pipeline.rejects import to_jsonl
from tests.pipeline import folders, object_store

IN_PROCESS = ["--runner=FnApiRunner", "--direct_running_mode=in_memory"]
TWO_WORKERS = ["--direct_num_workers=2"]


@pytest.fixture
def data_dir(tmp_path):
    return folders.draw(tmp_path / "data", train=30, test=3)


def run(data_dir: str, output_dir: str, flags=IN_PROCESS, budget=0.0, **kwargs) -> Plan:
    made = folders.claimed(data_dir, output_dir, **kwargs)
    job.run(output_dir, made, budget, PipelineOptions(flags))
    return made


def content(output_dir: str) -> dict[str, bytes]:
    """All files of a result by name, but the manifests, which hold the folder's own path."""
    root = pathlib.Path(output_dir)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "manifest-" not in path.name
    }


def write_one_by_one(data_dir: str, output_dir: str, **kwargs) -> Plan:
    """The reference: the same shards in a plain loop, grouped by brute force."""
    made = folders.claimed(data_dir, output_dir, **kwargs)
    converter = Converter(made.picture, made.class_names)
    for shard in made.all_shards():
        images = [
            image
            for image in layouts.find(data_dir).images
            if image.split == shard.split and shards.shard_of(image.id, shard.count) == shard.index
        ]
        shards.write(
            output_dir,
            shard,
            images,
            converter,
            fingerprint=made.fingerprint,
            thumbnails=made.thumbnails(shard),
        )
    return made


def test_the_job_writes_what_a_plain_loop_writes(data_dir, tmp_path):
    made = run(data_dir, str(tmp_path / "job"))
    write_one_by_one(data_dir, str(tmp_path / "loop"))
    by_job, by_loop = content(str(tmp_path / "job")), content(str(tmp_path / "loop"))
    names = {shard.file_name for shard in made.all_shards()}
    names |= {shard.sidecar_name for shard in made.all_shards()}
    assert names <= by_job.keys()
    assert {name: by_job[name] for name in names} == {name: by_loop[name] for name in names}


def test_two_worker_processes_write_the_same_bytes_as_one_in_process(data_dir, tmp_path):
    run(data_dir, str(tmp_path / "one"))
    run(data_dir, str(tmp_path / "two"), TWO_WORKERS)
    assert content(str(tmp_path / "one")) == content(str(tmp_path / "two"))


def test_a_shard_without_pictures_is_written(tmp_path):
    # Ten shards for three pictures: some must stay empty.
    data_dir = folders.draw(tmp_path / "data", train=10, test=0)
    made = run(data_dir, str(tmp_path / "out"), examples_per_shard=1)
    sizes = [
        os.path.getsize(os.path.join(tmp_path / "out", shard.file_name))
        for shard in made.all_shards()
    ]
    assert len(sizes) == 10
    assert 0 in sizes


def test_a_second_run_skips_finished_shards_and_mends_the_rest(data_dir, tmp_path):
    output_dir = str(tmp_path / "out")
    made = run(data_dir, output_dir)
    before = content(output_dir)
    kept, lost = made.shards("train")[0], made.shards("train")[1]
    os.remove(os.path.join(output_dir, lost.file_name))
    stamp = os.stat(os.path.join(output_dir, kept.file_name)).st_mtime_ns
    run(data_dir, output_dir)
    assert os.stat(os.path.join(output_dir, kept.file_name)).st_mtime_ns == stamp
    assert content(output_dir) == before


def test_a_run_that_failed_its_budget_resumes_under_a_larger_one(data_dir, tmp_path):
    output_dir = str(tmp_path / "out")
    bad = os.path.join(data_dir, "train", folders.CLASSES[0], "00000.jpg")
    with open(bad, "wb") as file:
        file.write(b"no picture")
    with pytest.raises(RuntimeError, match="are missing or bad"):
        run(data_dir, output_dir)
    assert not os.path.exists(os.path.join(output_dir, "dataset_info.json"))
    assert bad.split("/")[-1] in storage.read_text(os.path.join(output_dir, "rejects.jsonl"))
    made = run(data_dir, output_dir, budget=0.1)
    sidecar = shards.read_sidecar(
        output_dir, made.shards("train")[shards.shard_of(_id(bad), made.splits["train"].shards)]
    )
    assert sidecar is not None
    assert storage.read_text(os.path.join(output_dir, "rejects.jsonl")) == "".join(
        to_jsonl(sidecar.rejects)
    )
    assert os.path.exists(os.path.join(output_dir, "dataset_info.json"))


def _id(path: str) -> str:
    split, name, file = path.split("/")[-3:]
    return f"{split}/{name}/{file.removesuffix('.jpg')}"


def test_a_picture_that_vanished_fails_the_job_and_commits_nothing(data_dir, tmp_path):
    output_dir = str(tmp_path / "out")
    made = folders.claimed(data_dir, output_dir)
    os.remove(os.path.join(data_dir, "train", folders.CLASSES[0], "00000.jpg"))
    with pytest.raises(RuntimeError, match=r"00000\.jpg"):
        job.run(output_dir, made, 1.0, PipelineOptions(IN_PROCESS))
    assert not os.path.exists(os.path.join(output_dir, "dataset_info.json"))
    assert not any(".tmp-" in name for name in content(output_dir))


@pytest.mark.parametrize(
    "picture",
    [
        PictureOptions(image_size=16, encoding="packed"),
        PictureOptions(image_size=0, encoding="png"),
        PictureOptions(image_size=16, encoding="rgb", colors=0),
        PictureOptions(image_size=16, quantizer="sklearn", colors=4),
    ],
)
def test_every_encoding_and_quantizer_commits(tmp_path, picture):
    data_dir = folders.draw(tmp_path / "data", train=4, test=2)
    run(data_dir, str(tmp_path / "out"), picture=picture)
    assert os.path.exists(tmp_path / "out" / "dataset_info.json")


def test_a_run_whose_folder_was_taken_over_writes_no_shard(data_dir, tmp_path):
    output_dir = str(tmp_path / "out")
    old = folders.claimed(data_dir, output_dir)
    folders.claimed(data_dir, output_dir, PictureOptions(image_size=24), overwrite=True)
    before = content(output_dir)
    with pytest.raises(PlanError, match="taken over by another run"):
        job.run(output_dir, old, 0.0, PipelineOptions(IN_PROCESS))
    assert content(output_dir) == before


def test_the_job_fills_an_object_store_as_it_fills_a_folder(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "OBJECTS", {})
    for _ in range(2):  # the second time it finds everything finished
        run(data_dir, "fake://bucket/out")
    run(data_dir, str(tmp_path / "out"))
    stored = {
        name.removeprefix("fake://bucket/out/"): data
        for name, data in object_store.OBJECTS.items()
        if "manifest-" not in name
    }
    assert stored == content(str(tmp_path / "out"))
    assert list(verify.verify("fake://bucket/out")) == []


def test_a_relative_folder_is_the_same_for_every_worker(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    committed = []
    monkeypatch.setattr(job, "finish", lambda output_dir, *_: committed.append(output_dir))
    run(data_dir, "out")
    assert committed == [str(tmp_path / "out")]


def test_each_picture_of_a_shard_is_tallied(data_dir, tmp_path, monkeypatch):
    tallied: dict[str, list[bool]] = {}

    @contextlib.contextmanager
    def recording(output_dir, shard):
        yield tallied.setdefault(shard.file_name, []).append

    with open(os.path.join(data_dir, "train", folders.CLASSES[0], "00000.jpg"), "wb") as file:
        file.write(b"no picture")
    monkeypatch.setattr(job, "tally", recording)
    made = run(data_dir, str(tmp_path / "out"), budget=0.1)
    assert tallied.keys() == {shard.file_name for shard in made.all_shards()}
    assert sum(map(len, tallied.values())) == 33
    assert sum(map(sum, tallied.values())) == 1
