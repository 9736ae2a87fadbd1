import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pipeline import finish, layouts, shards
from pipeline import plan as plans
from pipeline.config import PictureOptions
from pipeline.plan import Plan, PlanError
from pipeline.rejects import Reject, TooManyRejectsError, to_jsonl
from tests.pipeline import folders
from tests.pipeline.test_job import write_one_by_one


@pytest.fixture
def data_dir(tmp_path):
    return folders.draw(tmp_path / "data")


def made_of(data_dir, tmp_path, **kwargs) -> tuple[str, Plan]:
    output_dir = str(tmp_path / "out")
    return output_dir, write_one_by_one(data_dir, output_dir, **kwargs)


@pytest.mark.parametrize("encoding", ["indexed", "packed", "png", "rgb"])
def test_tfds_opens_the_folder(data_dir, tmp_path, encoding):
    picture = PictureOptions(
        image_size=16, encoding=encoding, colors=0 if encoding == "rgb" else 32
    )
    output_dir, plan = made_of(data_dir, tmp_path, picture=picture)
    finish.finish(output_dir, plan, 0.0)
    builder = tfds.builder_from_directory(output_dir)
    assert (builder.name, str(builder.version)) == ("stanford_cars", "1.0.0")
    assert builder.info.features["label"].names == list(folders.CLASSES)
    listing = layouts.find(data_dir)
    for split in ("train", "test"):
        labels = {e["id"].decode(): e["label"] for e in tfds.as_numpy(builder.as_dataset(split))}
        assert labels == {i.id: i.label for i in listing.images if i.split == split}
        sizes = [os.path.getsize(os.path.join(output_dir, s.file_name)) for s in plan.shards(split)]
        assert builder.info.splits[split].num_bytes == sum(sizes)
    assert (builder.info.supervised_keys == ("image", "label")) == (encoding in ("png", "rgb"))


def test_finishing_twice_writes_the_same_bytes(data_dir, tmp_path):
    output_dir, plan = made_of(data_dir, tmp_path)
    names = [
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
        "rejects.jsonl",
        "report.json",
        "report.html",
    ]

    def read() -> list[bytes]:
        finish.finish(output_dir, plan, 0.0)
        contents = []
        for name in names:
            with open(os.path.join(output_dir, name), "rb") as file:
                contents.append(file.read())
        return contents

    assert read() == read()


def test_the_commit_is_the_last_file(data_dir, tmp_path, monkeypatch):
    output_dir, plan = made_of(data_dir, tmp_path)
    published = []
    publish = finish.storage.publish

    def recording(path: str, content: str | bytes) -> None:
        published.append(os.path.basename(path))
        publish(path, content)

    monkeypatch.setattr(finish.storage, "publish", recording)
    finish.finish(output_dir, plan, 0.0)
    assert published[-1] == "dataset_info.json"
    assert published.count("dataset_info.json") == 1


def test_nothing_is_committed_without_every_shard(data_dir, tmp_path):
    output_dir, plan = made_of(data_dir, tmp_path)
    lost = plan.shards("train")[1]
    os.remove(os.path.join(output_dir, lost.sidecar_name))
    with pytest.raises(finish.IncompleteError, match=lost.file_name):
        finish.finish(output_dir, plan, 0.0)
    assert not os.path.exists(os.path.join(output_dir, "dataset_info.json"))


def test_a_split_without_any_record_is_left_out_of_the_metadata(data_dir, tmp_path):
    for root, _, names in os.walk(os.path.join(data_dir, "test")):
        for name in names:
            with open(os.path.join(root, name), "wb") as file:
                file.write(b"no picture")
    output_dir, plan = made_of(data_dir, tmp_path)
    finish.finish(output_dir, plan, 0.5)
    assert list(tfds.builder_from_directory(output_dir).info.splits) == ["train"]
    report = json.loads(pathlib.Path(output_dir, "report.json").read_text())
    assert "test" in json.dumps(report)


def test_the_budget_counts_missing_and_bad_pictures(data_dir, tmp_path):
    with open(os.path.join(data_dir, "train", folders.CLASSES[0], "00000.jpg"), "wb") as file:
        file.write(b"")
    output_dir, plan = made_of(data_dir, tmp_path)  # 1 bad of 17
    splits = {**plan.splits, "train": dataclasses.replace(plan.splits["train"], missing=3)}
    plan = dataclasses.replace(plan, splits=splits)
    with pytest.raises(TooManyRejectsError, match=r"of 20 pictures.*1 empty.*rejects\.jsonl"):
        finish.check_rejects(plan, _rejects(output_dir, plan), 0.0, output_dir)
    finish.check_rejects(plan, _rejects(output_dir, plan), 0.05, output_dir)


def _rejects(output_dir, plan):
    sidecars = [shards.read_sidecar(output_dir, shard) for shard in plan.all_shards()]
    return [reject for sidecar in sidecars if sidecar for reject in sidecar.rejects]


def test_equal_pictures_are_found_across_shards_and_splits(data_dir, tmp_path):
    pictures = [
        os.path.join(data_dir, split, folders.CLASSES[c], name)
        for split, c, name in (
            ("train", 0, "00000.jpg"),
            ("train", 1, "00001.jpg"),
            ("test", 2, "00002.jpg"),
        )
    ]
    pair = [os.path.join(data_dir, "train", folders.CLASSES[0], f"{i:05d}.jpg") for i in (3, 6)]
    for path in pair:
        with open(path, "wb") as file:
            file.write(folders.jpeg(seed=778))
    for path in pictures:
        with open(path, "wb") as file:
            file.write(folders.jpeg(seed=777))
    output_dir, plan = made_of(data_dir, tmp_path)
    finish.finish(output_dir, plan, 0.0)
    report = json.loads(pathlib.Path(output_dir, "report.json").read_text())
    group, two = (group["labels"] for group in report["duplicates"])
    assert [id.split("/")[-1] for id in two] == ["00003", "00006"]
    assert {id.split("/")[-1]: label for id, label in group.items()} == {
        "00000": 0,
        "00001": 1,
        "00002": 2,
    }


def summarize(output_dir, shards_of_split):
    sums = finish.SplitSums()
    for shard in shards_of_split:
        sums.add(shards.read_sidecar(output_dir, shard))
    return sums.summary()


def test_the_summary_of_a_split_is_the_sum_of_its_shards(data_dir, tmp_path):
    output_dir, plan = made_of(data_dir, tmp_path)
    summary = summarize(output_dir, plan.shards("train"))
    sizes = [os.path.getsize(os.path.join(output_dir, s.file_name)) for s in plan.shards("train")]
    assert (summary.records, summary.shards, summary.bytes) == (12, 3, sum(sizes))
    assert summary.statistics.pictures == 12
    assert np.isfinite(summary.statistics.psnr())


@pytest.mark.parametrize("size", [None, 0])
def test_nothing_is_committed_when_a_shard_is_gone_or_cut_off(data_dir, tmp_path, size):
    output_dir, plan = made_of(data_dir, tmp_path)
    lost = plan.shards("train")[1]
    path = pathlib.Path(output_dir, lost.file_name)
    path.unlink() if size is None else path.write_bytes(b"")
    with pytest.raises(finish.IncompleteError, match=lost.file_name):
        finish.finish(output_dir, plan, 0.0)
    assert not os.path.exists(os.path.join(output_dir, "dataset_info.json"))


def test_a_run_whose_folder_was_taken_over_commits_nothing(data_dir, tmp_path):
    output_dir, plan = made_of(data_dir, tmp_path)
    folders.claimed(data_dir, output_dir, PictureOptions(image_size=24), overwrite=True)
    with pytest.raises(PlanError, match="taken over"):
        finish.finish(output_dir, plan, 0.0)
    assert not os.path.exists(os.path.join(output_dir, "rejects.jsonl"))


def test_what_was_missing_at_listing_is_among_the_rejects(data_dir, tmp_path):
    output_dir, plan = made_of(data_dir, tmp_path)
    row = Reject("train/lost", "train/lost.jpg", "missing", "no such file")
    pathlib.Path(output_dir, "_shards", "missing.jsonl").write_text("".join(to_jsonl([row])))
    with pytest.raises(TooManyRejectsError, match="1 missing"):
        finish.finish(output_dir, plan, 0.0)
    assert not os.path.exists(os.path.join(output_dir, "dataset_info.json"))
    finish.finish(output_dir, plan, 0.1)
    assert pathlib.Path(output_dir, "rejects.jsonl").read_text() == "".join(to_jsonl([row]))


def test_a_shard_of_another_run_is_not_committed(data_dir, tmp_path):
    output_dir, plan = made_of(data_dir, tmp_path)
    path = pathlib.Path(output_dir, plan.shards("train")[1].sidecar_name)
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "another"}))
    with pytest.raises(finish.IncompleteError):
        finish.finish(output_dir, plan, 0.0)


def test_a_contact_sheet_has_no_more_thumbnails_than_it_may(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "THUMBNAILS_PER_SPLIT", 4)  # 2 of each of 3 shards
    output_dir, plan = made_of(data_dir, tmp_path)
    sidecars = [shards.read_sidecar(output_dir, shard) for shard in plan.shards("train")]
    assert [len(sidecar.thumbnails) for sidecar in sidecars if sidecar] == [2, 2, 2]
    assert len(summarize(output_dir, plan.shards("train")).thumbnails) == 4
