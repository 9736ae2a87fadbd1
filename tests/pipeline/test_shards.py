import hashlib
import json
import os
import threading

import pytest

from pipeline import layouts, shards, tfrecord
from pipeline.config import PictureOptions
from pipeline.convert import Converter
from pipeline.listing import CarImage
from pipeline.records import decode
from pipeline.shards import Shard, Sidecar
from tests.pipeline import folders

SHARD = Shard("train", 0, 1)


@pytest.fixture
def images(tmp_path):
    listing = layouts.find(folders.draw(tmp_path / "data"))
    return [image for image in listing.images if image.split == "train"]


def write(tmp_path, images, name="out", **kwargs) -> Sidecar:
    output_dir = tmp_path / name
    (output_dir / "_shards").mkdir(parents=True, exist_ok=True)
    converter = Converter(PictureOptions(image_size=16), folders.CLASSES)
    options = {"fingerprint": "f", "thumbnails": 2, **kwargs}
    return shards.write(str(output_dir), SHARD, images, converter, **options)


def read_ids(path) -> list[str]:
    with path.open("rb") as file:
        return [decode(record.data)["id"].decode() for record in tfrecord.read(file)]


def test_sha256_of_the_id_decides_the_shard():
    # By hand: the first 16 hex digits as a number.
    for id in ("train/00001", "000001", "train/Ram C-V Cargo Van Minivan 2012/é"):
        digits = hashlib.sha256(id.encode()).hexdigest()[:16]
        for count in (1, 2, 7, 32, 1_000_003):
            assert shards.shard_of(id, count) == int(digits, 16) % count


def test_shards_are_of_even_size():
    counts = [0] * 32
    for i in range(8144):
        counts[shards.shard_of(f"train/{i:05d}", 32)] += 1
    mean = 8144 / 32
    assert max(abs(n - mean) for n in counts) < 4 * mean**0.5  # four standard deviations


def test_names_are_those_of_tfds():
    shard = Shard("train", 3, 32)
    assert shard.file_name == "stanford_cars-train.tfrecord-00003-of-00032"
    assert shard.sidecar_name == "_shards/stanford_cars-train.tfrecord-00003-of-00032.json"


def test_the_order_of_the_input_does_not_matter_and_sha256_orders_the_records(tmp_path, images):
    one = write(tmp_path, images, "one")
    two = write(tmp_path, images[::-1], "two")
    assert one == two
    paths = [tmp_path / name / SHARD.file_name for name in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    ids = read_ids(paths[0])
    assert ids == sorted(ids, key=lambda id: hashlib.sha256(id.encode()).hexdigest())
    assert sorted(ids) == sorted(image.id for image in images)


def test_the_sidecar_tells_the_truth_about_the_file(tmp_path, images):
    sidecar = write(tmp_path, images)
    data = (tmp_path / "out" / SHARD.file_name).read_bytes()
    assert sidecar.bytes == len(data)
    assert sidecar.sha256 == hashlib.sha256(data).hexdigest()
    assert sidecar.records == len(images) == sidecar.statistics.pictures
    assert [id for _, id, _ in sidecar.contents] == read_ids(tmp_path / "out" / SHARD.file_name)
    assert [t.id for t in sidecar.thumbnails] == [id for _, id, _ in sidecar.contents][:2]
    text = (tmp_path / "out" / SHARD.sidecar_name).read_text()
    assert Sidecar.from_json(json.loads(text)) == sidecar


def test_a_bad_picture_costs_one_row(tmp_path, images):
    with open(images[3].path, "wb") as file:
        file.write(b"not a picture")
    told = []
    sidecar = write(tmp_path, images, on_picture=told.append)
    assert [reject.id for reject in sidecar.rejects] == [images[3].id]
    assert sidecar.rejects[0].path == images[3].relative_path
    assert images[3].id not in read_ids(tmp_path / "out" / SHARD.file_name)
    assert sidecar.records == len(images) - 1
    assert len(told) == len(images)


def test_a_file_that_cannot_be_read_is_not_a_bad_picture(tmp_path, images):
    os.remove(images[3].path)  # listed, then gone: the runner must retry
    with pytest.raises(FileNotFoundError):
        write(tmp_path, images)
    assert [name for name in os.listdir(tmp_path / "out") if name != "_shards"] == []
    assert os.listdir(tmp_path / "out" / "_shards") == []


def test_a_shard_given_up_leaves_no_thread_that_reads(tmp_path, images):
    def disk_full(_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as raised:
        write(tmp_path, images, on_picture=disk_full)
    # The traceback still holds every frame of the block that raised.
    assert raised.tb is not None
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_only_a_whole_shard_of_the_same_run_counts_as_finished(tmp_path, images):
    sidecar = write(tmp_path, images)
    output_dir = str(tmp_path / "out")
    assert shards.read_finished(output_dir, SHARD, "f") == sidecar
    assert shards.read_finished(output_dir, SHARD, "another") is None
    path = tmp_path / "out" / SHARD.file_name
    path.write_bytes(path.read_bytes()[:-1])
    assert shards.read_finished(output_dir, SHARD, "f") is None
    path.unlink()
    assert shards.read_finished(output_dir, SHARD, "f") is None


def test_an_empty_shard_is_written_all_the_same(tmp_path):
    sidecar = write(tmp_path, [])
    assert (sidecar.records, sidecar.bytes) == (0, 0)
    assert (tmp_path / "out" / SHARD.file_name).read_bytes() == b""


def test_ids_of_other_languages_have_a_shard():
    image = CarImage("train/車/é 1", "train", "", "", 0, None, 0, 0.0)
    assert 0 <= shards.shard_of(image.id, 5) < 5


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_a_shard_whose_sidecar_is_broken_is_not_finished(tmp_path, images, text):
    write(tmp_path, images)
    (tmp_path / "out" / SHARD.sidecar_name).write_bytes(text.encode("latin-1"))
    assert shards.read_finished(str(tmp_path / "out"), SHARD, "f") is None
