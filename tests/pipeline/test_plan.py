import dataclasses
import json
import os
import shutil

import pytest

from pipeline import layouts, plan
from pipeline.config import JobOptions, PictureOptions
from pipeline.listing import CarImage, sort_by_id
from pipeline.plan import PlanError
from pipeline.rejects import Reject
from tests.pipeline import folders

SMALL = PictureOptions(image_size=16)
MISSING = Reject("train/lost", "train/lost.jpg", "missing", "no such file")


@pytest.fixture
def data_dir(tmp_path):
    return folders.draw(tmp_path / "data")


@pytest.fixture
def output_dir(tmp_path):
    return str(tmp_path / "out")


def test_shards_are_the_ceiling_of_pictures_over_examples_per_shard(data_dir):
    made = plan.make(layouts.find(data_dir), SMALL, 5)
    assert {name: split.shards for name, split in made.splits.items()} == {"test": 1, "train": 3}
    assert [shard.index for shard in made.shards("train")] == [0, 1, 2]
    assert len(made.all_shards()) == 4


def test_a_plan_survives_json(data_dir):
    made = plan.make(layouts.find(data_dir), SMALL, 5)
    value = json.loads(json.dumps(made.to_json()))
    assert plan.Plan.from_json(value) == made
    assert value["fingerprint"] == made.fingerprint


def test_the_fingerprint_covers_what_makes_the_bytes(data_dir):
    listing = layouts.find(data_dir)
    made = plan.make(listing, SMALL, 5)
    first = listing.images[0]

    def with_first(**changes: object) -> plan.Plan:
        image = dataclasses.replace(first, **changes)
        return plan.make(
            dataclasses.replace(listing, images=sort_by_id([image, *listing.images[1:]])), SMALL, 5
        )

    others = [
        plan.make(listing, dataclasses.replace(SMALL, colors=16), 5),
        plan.make(listing, dataclasses.replace(SMALL, fit="pad"), 5),
        plan.make(listing, dataclasses.replace(SMALL, decode="scaled"), 5),
        plan.make(listing, SMALL, 6),
        plan.make(dataclasses.replace(listing, class_names=listing.class_names[::-1]), SMALL, 5),
        plan.make(dataclasses.replace(listing, images=listing.images[1:]), SMALL, 5),
        plan.make(dataclasses.replace(listing, missing=(MISSING,)), SMALL, 5),
        with_first(id="train/other"),
        with_first(relative_path="elsewhere.jpg"),
        with_first(label=first.label + 1),
        with_first(box=(1, 2, 3, 4)),
        with_first(size=first.size + 1),
        with_first(modified=first.modified + 1),
        dataclasses.replace(made, versions={**made.versions, "pillow": "0"}),
    ]
    assert len({other.fingerprint for other in [made, *others]}) == len(others) + 1


def test_the_fingerprint_does_not_cover_the_order_or_where_the_data_lies(data_dir, tmp_path):
    listing = layouts.find(data_dir)
    shutil.copytree(data_dir, tmp_path / "copy")  # keeps modification times
    copy = layouts.find(str(tmp_path / "copy"))
    reordered = dataclasses.replace(copy, images=sort_by_id(copy.images[::-1]))
    assert plan.make(reordered, SMALL, 5).fingerprint == plan.make(listing, SMALL, 5).fingerprint


def test_crop_box_needs_boxes(data_dir):
    with pytest.raises(PlanError, match=r"--crop=box needs boxes, but .* class_folders|--crop=box"):
        plan.make(layouts.find(data_dir), PictureOptions(crop="box"), 5)


def test_the_manifests_hold_every_row(data_dir, output_dir, monkeypatch):
    monkeypatch.setattr(plan, "ROWS_PER_MANIFEST", 5)
    made = folders.claimed(data_dir, output_dir)
    rows: list[CarImage] = []
    for index in range(made.manifests):
        rows += plan.read_manifest(plan.manifest_path(output_dir, index))
    assert made.manifests == 4
    assert sorted(rows, key=lambda row: row.id) == sorted(
        layouts.find(data_dir).images, key=lambda row: row.id
    )


def test_the_same_plan_may_claim_a_folder_again(data_dir, output_dir):
    made = folders.claimed(data_dir, output_dir)
    assert folders.claimed(data_dir, output_dir) == made
    assert plan.read(output_dir) == made


@pytest.mark.parametrize(
    ("picture", "examples_per_shard", "told"),
    [
        (PictureOptions(image_size=16, colors=16), 4, "--colors was 32, is now 16"),
        (PictureOptions(image_size=24), 4, "--image_size was 16, is now 24"),
        (SMALL, 5, "--examples_per_shard was 4, is now 5"),
    ],
)
def test_other_options_are_refused_and_named(
    data_dir, output_dir, picture, examples_per_shard, told
):
    folders.claimed(data_dir, output_dir)
    with pytest.raises(PlanError, match=told):
        folders.claimed(data_dir, output_dir, picture, examples_per_shard)


def test_changed_input_is_refused_and_named(data_dir, output_dir):
    folders.claimed(data_dir, output_dir)
    folder = os.path.join(data_dir, "train", folders.CLASSES[0])
    os.utime(os.path.join(folder, "00000.jpg"), (1, 1))
    os.remove(os.path.join(folder, "00003.jpg"))
    with open(os.path.join(folder, "00099.jpg"), "wb") as file:
        file.write(folders.jpeg(99))
    with pytest.raises(PlanError) as caught:
        folders.claimed(data_dir, output_dir)
    for told in ("1 pictures changed", "00000)", "1 pictures gone", "00003)", "1 pictures added"):
        assert told in str(caught.value)


def test_overwrite_removes_only_what_this_program_wrote(data_dir, output_dir):
    made = folders.claimed(data_dir, output_dir)
    shard = made.shards("train")[0]
    ours = [shard.file_name, shard.sidecar_name, "features.json", "dataset_info.json"]
    theirs = ["notes.txt", "_shards/mine", "stanford_cars-train.tfrecord-00000-of-99999"]
    for name in ours + theirs:
        with open(os.path.join(output_dir, name), "w") as file:
            file.write("content")
    folders.claimed(data_dir, output_dir, PictureOptions(image_size=24), overwrite=True)
    assert [os.path.exists(os.path.join(output_dir, name)) for name in ours] == [False] * 4
    assert all(os.path.exists(os.path.join(output_dir, name)) for name in theirs)


def test_overwrite_withdraws_the_commit_before_anything_else(data_dir, output_dir, monkeypatch):
    folders.claimed(data_dir, output_dir)
    removed = []
    monkeypatch.setattr(plan.storage, "remove", lambda paths: removed.extend(paths))
    folders.claimed(data_dir, output_dir, PictureOptions(image_size=24), overwrite=True)
    assert removed[0].endswith("dataset_info.json")
    assert removed[-2].endswith("preprocessing.json") or "preprocessing" in "".join(removed[-2:])


def test_a_data_set_of_another_program_is_refused(data_dir, output_dir):
    os.makedirs(output_dir)
    path = os.path.join(output_dir, "dataset_info.json")
    with open(path, "w") as file:
        file.write("{}")
    for overwrite in (False, True):
        with pytest.raises(PlanError, match="this program did not write"):
            folders.claimed(data_dir, output_dir, overwrite=overwrite)
    assert os.path.exists(path)


def test_a_missing_shard_withdraws_the_commit_until_it_is_made_again(data_dir, output_dir):
    made = folders.claimed(data_dir, output_dir)
    names = [shard.file_name for shard in made.all_shards()]
    for name in [*names, "dataset_info.json"]:
        with open(os.path.join(output_dir, name), "w") as file:
            file.write("")
    folders.claimed(data_dir, output_dir)
    assert os.path.exists(os.path.join(output_dir, "dataset_info.json"))
    os.remove(os.path.join(output_dir, names[1]))
    folders.claimed(data_dir, output_dir)
    assert not os.path.exists(os.path.join(output_dir, "dataset_info.json"))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format_version": 99}', '{"format_version": 1}', "\xff"]
)
def test_a_plan_that_is_not_understood_names_the_file(output_dir, text):
    os.makedirs(output_dir)
    with open(os.path.join(output_dir, "preprocessing.json"), "w") as file:
        file.write(text)
    with pytest.raises(PlanError, match=r"preprocessing\.json is not understood"):
        plan.read(output_dir)


@pytest.mark.parametrize(("count", "thumbnails"), [(1, 48), (2, 24), (32, 2), (48, 1), (100, 1)])
def test_a_split_has_thumbnails_for_a_contact_sheet(data_dir, count, thumbnails):
    made = plan.make(layouts.find(data_dir), SMALL, 5)
    assert made.thumbnails(plan.Shard("train", 0, count)) == thumbnails
    assert made.thumbnails(plan.Shard("train", 1000, 100_000)) == 0


def test_a_claim_holds_until_another_run_takes_over(data_dir, output_dir):
    made = folders.claimed(data_dir, output_dir)
    plan.require_claim(output_dir, made)
    folders.claimed(data_dir, output_dir, PictureOptions(image_size=24), overwrite=True)
    with pytest.raises(PlanError, match="taken over by another run"):
        plan.require_claim(output_dir, made)
    os.remove(os.path.join(output_dir, "preprocessing.json"))
    with pytest.raises(PlanError, match="taken over by another run"):
        plan.require_claim(output_dir, made)


def test_a_folder_half_removed_is_refused_and_can_be_overwritten(data_dir, output_dir):
    folders.claimed(data_dir, output_dir)
    os.remove(plan.manifest_path(output_dir, 0))
    with open(os.path.join(data_dir, "train", folders.CLASSES[0], "00099.jpg"), "wb") as file:
        file.write(folders.jpeg(99))
    with pytest.raises(PlanError, match="the input differs"):
        folders.claimed(data_dir, output_dir)
    assert folders.claimed(data_dir, output_dir, overwrite=True) == plan.read(output_dir)


def test_a_class_of_another_name_is_named(data_dir, output_dir):
    made = folders.claimed(data_dir, output_dir)
    listing = layouts.find(data_dir)
    renamed = dataclasses.replace(listing, class_names=(*listing.class_names[:-1], "Delta"))
    other = plan.make(renamed, SMALL, made.examples_per_shard)
    with pytest.raises(PlanError, match="class 2 was 'Gamma Three Van 2003', is now 'Delta'"):
        plan.claim(JobOptions(data_dir, output_dir), other, renamed)


@pytest.mark.parametrize(
    ("options", "libraries"),
    [
        ({}, {"numba"}),
        ({"quantizer": "sklearn"}, {"numba", "scikit-learn"}),  # it assigns by the same kernels
        ({"colors": 0, "encoding": "rgb"}, set()),
    ],
)
def test_versions_are_of_the_libraries_that_touch_the_bytes(data_dir, options, libraries):
    made = plan.make(layouts.find(data_dir), PictureOptions(image_size=16, **options), 5)
    always = {"numpy", "pillow", "protobuf", "tensorflow-datasets"}
    assert made.versions.keys() == always | libraries


def test_what_killed_runs_left_is_removed_at_the_next_claim(data_dir, output_dir):
    folders.claimed(data_dir, output_dir)
    for name in (".tmp-shard", "_shards/.tmp-sidecar"):
        with open(os.path.join(output_dir, name), "w") as file:
            file.write("half")
    folders.claimed(data_dir, output_dir)
    assert not [name for _, _, names in os.walk(output_dir) for name in names if ".tmp" in name]


def test_a_worker_of_other_versions_is_refused(data_dir):
    made = plan.make(layouts.find(data_dir), SMALL, 5)
    plan.require_versions(made)
    other = dataclasses.replace(made, versions={**made.versions, "pillow": "1.0"})
    with pytest.raises(PlanError, match=r"this worker has pillow .*the launcher has .*pillow 1\.0"):
        plan.require_versions(other)
