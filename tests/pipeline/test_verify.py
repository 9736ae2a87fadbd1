import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from pipeline import finish, tfrecord, verify
from pipeline.config import PictureOptions
from pipeline.plan import Plan
from pipeline.records import Encoder, decode
from tests.pipeline import folders
from tests.pipeline.test_job import write_one_by_one


def make(tmp_path, **options) -> tuple[str, Plan]:
    data_dir = folders.draw(tmp_path / "data")
    output_dir = str(tmp_path / "out")
    plan = write_one_by_one(
        data_dir, output_dir, picture=PictureOptions(**{"image_size": 16, **options})
    )
    finish.finish(output_dir, plan, 0.0)
    return output_dir, plan


@pytest.fixture
def made(tmp_path):
    return make(tmp_path)


def read(output_dir, shard) -> list[bytes]:
    with open(os.path.join(output_dir, shard.file_name), "rb") as file:
        return [record.data for record in tfrecord.read(file)]


def rewrite(output_dir, shard, records) -> None:
    """Writes a shard whose checksums are all right, whatever is in it."""
    with open(os.path.join(output_dir, shard.file_name), "wb") as file:
        file.write(b"".join(map(tfrecord.frame, records)))


def problems(output_dir) -> str:
    return "\n".join(verify.verify(output_dir))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoding": "packed"},
        {"encoding": "png"},
        {"encoding": "png", "image_size": 0},
        {"encoding": "rgb", "colors": 0},
        {"colors": 200},
    ],
)
def test_a_sound_folder_has_no_problems_and_every_record_is_read(tmp_path, options):
    output_dir, plan = make(tmp_path, **options)
    read = []
    assert list(verify.verify(output_dir, lambda: read.append(1))) == []
    assert len(read) == plan.found


def test_swapped_records_are_found(made):
    output_dir, plan = made
    shard = plan.shards("train")[0]
    records = read(output_dir, shard)
    rewrite(output_dir, shard, [records[1], records[0], *records[2:]])
    assert "out of order" in problems(output_dir)


def test_a_doubled_record_is_found(made):
    output_dir, plan = made
    shard = plan.shards("train")[0]
    records = read(output_dir, shard)
    rewrite(output_dir, shard, [records[0], *records])
    assert "this id was read before" in problems(output_dir)


@pytest.mark.parametrize("order", [1, -1])
def test_a_record_in_another_shard_is_found(made, order):
    output_dir, plan = made
    one, two = plan.shards("train")[:2][::order]
    moved, *rest = read(output_dir, one)
    rewrite(output_dir, one, rest)
    rewrite(output_dir, two, [moved, *read(output_dir, two)])
    told = problems(output_dir)
    assert f"{two.file_name}: record 0" in told
    assert f"belongs to {one.file_name}" in told
    assert "in no shard" not in told  # said once is enough


def test_a_lost_record_is_found(made):
    output_dir, plan = made
    shard = plan.shards("train")[0]
    lost, *rest = read(output_dir, shard)
    rewrite(output_dir, shard, rest)
    told = problems(output_dir)
    assert f"{decode(lost)['id'].decode()}: in no shard" in told
    assert "dataset_info.json: split train is said to have 12 records" in told


def test_a_flipped_bit_names_file_and_offset(made):
    output_dir, plan = made
    path = os.path.join(output_dir, plan.shards("train")[0].file_name)
    with open(path, "r+b") as file:
        file.seek(40)
        file.write(b"\xff")
    assert f"{os.path.basename(path)}: wrong checksum of the record at offset 0" in problems(
        output_dir
    )


def test_a_shard_cut_off_or_gone_is_found(made):
    output_dir, plan = made
    cut, gone = plan.shards("train")[:2]
    path = os.path.join(output_dir, cut.file_name)
    os.truncate(path, os.path.getsize(path) - 3)
    os.remove(os.path.join(output_dir, gone.file_name))
    told = problems(output_dir)
    assert f"{cut.file_name}: cut off in the record" in told
    assert f"{gone.file_name}: the file is missing" in told


def altered(made, **changes) -> str:
    """Returns the problems after the first record was written anew with other fields."""
    output_dir, plan = made
    shard = plan.shards("train")[0]
    first, *rest = read(output_dir, shard)
    fields = decode(first)
    size, colors = plan.picture.image_size, plan.picture.colors
    values = {
        "id": fields["id"].decode(),
        "label": fields["label"],
        "bbox": tuple(fields["bbox"]),
        "indices": np.frombuffer(fields["indices"], np.uint8).reshape(size, size),
        "palette": np.frombuffer(fields["palette"], np.uint8).reshape(colors, 3),
    }
    values |= {name: change(values[name]) for name, change in changes.items()}
    record = Encoder(plan.picture, plan.class_names).indexed(**values)
    rewrite(output_dir, shard, [record, *rest])
    return problems(output_dir)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"label": lambda label: (label + 1) % 3}, "the input says"),
        ({"id": lambda id: "train/unknown"}, "not in the manifest"),
        ({"indices": lambda indices: indices + 32}, "in a palette of 32 colours"),
        ({"palette": lambda palette: palette[::-1]}, "not ordered by luminance"),
    ],
)
def test_a_wrong_field_is_found(made, changes, told):
    assert told in altered(made, **changes)


def test_a_sound_record_of_other_pixels_is_found_by_the_sidecar(made):
    told = altered(made, indices=lambda indices: indices[::-1])
    assert "its sha256 is not the one in _shards/" in told


def test_a_record_of_another_schema_is_found(tmp_path):
    output_dir, plan = make(tmp_path)
    shard = plan.shards("train")[0]
    first, *rest = read(output_dir, shard)
    fields = decode(first)
    png = Encoder(PictureOptions(encoding="rgb", colors=0, image_size=16), plan.class_names)
    record = png.rgb(
        fields["id"].decode(),
        fields["label"],
        (0.0, 0.0, 1.0, 1.0),
        np.zeros((16, 16, 3), np.uint8),
    )
    rewrite(output_dir, shard, [record, *rest])
    assert "has the fields ['bbox', 'id', 'image', 'label']" in problems(output_dir)


def test_too_many_colours_in_a_png_are_found(tmp_path):
    output_dir, plan = make(tmp_path, encoding="png", colors=4)
    shard = plan.shards("train")[0]
    first, *rest = read(output_dir, shard)
    fields = decode(first)
    record = Encoder(plan.picture, plan.class_names).indexed(
        fields["id"].decode(),
        fields["label"],
        (0.0, 0.0, 1.0, 1.0),
        np.arange(256, dtype=np.uint8).reshape(16, 16) % 5,
        np.eye(5, 3, dtype=np.uint8) * np.arange(1, 6, dtype=np.uint8)[:, None] * 40
        + np.arange(5, dtype=np.uint8)[:, None],
    )
    rewrite(output_dir, shard, [record, *rest])
    assert "image has 5 colours, more than 4" in problems(output_dir)


def test_a_reject_that_is_also_in_a_shard_is_found(made):
    output_dir, plan = made
    id = decode(read(output_dir, plan.shards("train")[0])[0])["id"].decode()
    row = {"id": id, "path": "p", "reason": "truncated", "detail": "d"}
    with open(os.path.join(output_dir, "rejects.jsonl"), "w") as file:
        file.write(json.dumps(row) + "\n")
    assert f"{id}: in a shard, and also among the rejects" in problems(output_dir)


def test_an_unfinished_folder_is_refused(made, tmp_path):
    output_dir, _ = made
    os.remove(os.path.join(output_dir, "dataset_info.json"))
    with pytest.raises(verify.UnverifiableError, match="the job did not finish"):
        list(verify.verify(output_dir))
    with pytest.raises(verify.UnverifiableError, match="not made by this program"):
        list(verify.verify(str(tmp_path)))


@pytest.mark.parametrize("name", ["features.json", "label.labels.txt"])
def test_a_schema_of_another_data_set_is_found(made, name):
    output_dir, _ = made
    with open(os.path.join(output_dir, name), "a") as file:
        file.write("Delta\n")
    assert f"{name}: is not what preprocessing.json demands" in problems(output_dir)


def test_a_shard_of_another_run_is_found(made):
    output_dir, plan = made
    shard = plan.shards("train")[0]
    path = os.path.join(output_dir, shard.sidecar_name)
    with open(path) as file:
        sidecar = json.load(file)
    with open(path, "w") as file:
        json.dump({**sidecar, "fingerprint": "another"}, file)
    assert f"{shard.file_name}: made by another run" in problems(output_dir)
    with open(path, "w") as file:
        file.write("{")
    assert "is missing or broken" in problems(output_dir)


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "rejects.jsonl", "_shards/manifest-00000.jsonl", "features.json"]
)
def test_a_broken_or_missing_list_of_what_should_be_there_is_named(made, name):
    output_dir, _ = made
    path = os.path.join(output_dir, name)
    if name != "features.json":
        with open(path, "w") as file:
            file.write('{"half')
        with pytest.raises(verify.UnverifiableError, match=f"{name} is not understood"):
            list(verify.verify(output_dir))
    os.remove(path)
    with pytest.raises(verify.UnverifiableError, match=f"{name}"):
        list(verify.verify(output_dir))


def edited(made, edit) -> str:
    """Returns the problems after `edit` changed the message of the first record."""
    output_dir, plan = made
    shard = plan.shards("train")[0]
    first, *rest = read(output_dir, shard)
    message = tf_example_pb2.Example.FromString(first)
    edit(message.features.feature)
    rewrite(output_dir, shard, [message.SerializeToString(), *rest])
    return problems(output_dir)


def set_bytes(name, change):
    def edit(features):
        values = features[name].bytes_list.value
        values[0] = change(values[0])

    return edit


def set_numbers(name, kind, *numbers):
    return lambda features: getattr(features[name], kind).value.__setitem__(slice(None), numbers)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (set_numbers("bbox", "float_list", 0.0, 0.0, 1.0), "not four numbers"),
        (set_numbers("bbox", "float_list", 0.9, 0.0, 0.1, 1.0), "not (ymin, xmin, ymax, xmax)"),
        (set_numbers("bbox", "float_list", 0.0, 0.0, 1.0, 1.5), "not (ymin, xmin, ymax, xmax)"),
        (set_numbers("label", "int64_list", 3), "label is 3, outside 0 to 2"),
        (set_numbers("label", "int64_list", -1), "label is -1, outside 0 to 2"),
        (set_bytes("indices", lambda data: bytes([32]) + data[1:]), "index 32 in a palette of 32"),
        (set_bytes("indices", lambda data: data[1:]), "indices is not (16, 16) bytes"),
        (set_bytes("palette", lambda data: data[3:]), "palette is not (32, 3) bytes"),
        (lambda features: features.pop("id"), "record 0 at offset 0: no id"),
        (lambda features: features["more"], "has the fields"),
    ],
)
def test_a_field_that_breaks_the_schema_is_found(made, edit, told):
    assert told in edited(made, edit)


def test_a_record_that_is_no_example_is_found_and_the_rest_is_read(made):
    output_dir, plan = made
    shard = plan.shards("train")[0]
    _, *rest = read(output_dir, shard)
    rewrite(output_dir, shard, [b"garbage123", *rest])
    told = problems(output_dir)
    assert f"{shard.file_name}: record 0 at offset 0: not a tf.train.Example" in told
    assert told.count("in no shard") == 1


def png(mode: str, size: int) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda _: png("P", 15), "image is 15x15, not 16x16"),
        (lambda _: png("RGB", 16), "image is a PNG of mode RGB"),
        (lambda data: data[: len(data) // 2], "image cannot be decoded"),
        (lambda _: b"no picture", "image cannot be decoded"),
    ],
)
def test_a_wrong_png_is_found(tmp_path, change, told):
    assert told in edited(make(tmp_path, encoding="png"), set_bytes("image", change))
