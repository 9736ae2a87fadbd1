"""The job from a bucket to a bucket."""

import json
import subprocess
import sys
import time

import pytest

from tests.engines.launch import (
    IN_PROCESS,
    ROOT,
    SECONDS,
    command,
    preprocess,
    shards,
    try_preprocess,
)

FEW_SHARDS = (*IN_PROCESS, "--examples_per_shard=32")

# They hold the fingerprint, which covers modification times, or the place of the input.
OF_THE_INPUT = ("_shards/", "preprocessing.json", "report.")


@pytest.fixture(scope="module")
def made_and_asked(bucket, cars):
    """Runs a job in the bucket; returns the names of input and output folder, and the requests."""
    data = bucket.upload(cars, "cars")
    seen = len(bucket.requests())
    preprocess(data, "gs://cars/out", *IN_PROCESS, environment=bucket.environment)
    return (data, "gs://cars/out"), bucket.requests()[seen:]


@pytest.fixture(scope="module")
def made(made_and_asked):
    return made_and_asked[0]


def test_files_are_those_of_a_local_run(bucket, made, local):
    remote = bucket.read("out")
    assert remote.keys() == local.keys()
    for name in local:
        if not name.startswith(OF_THE_INPUT):
            assert remote[name] == local[name], name


def test_nothing_is_renamed_and_the_commit_is_written_last(bucket, made):
    copies = ("/rewriteTo/", "/copyTo/", "/batch/")  # Beam copies and deletes in batches
    assert not [p for _, p in bucket.requests() if any(word in p for word in copies)]
    created = [name for name in bucket.created() if name.startswith("out/")]
    assert created[-1] == "out/dataset_info.json"
    assert not [name for name in created if "tmp" in name]
    shards_created = [name for name in created if "/stanford_cars-" in name]
    assert len(shards_created) == len(set(shards_created))


def test_a_picture_costs_one_request(made_and_asked):
    # Beam alone would make three, for the properties of the bucket, of the object, and the content.
    asked = [path for method, path in made_and_asked[1] if method == "GET" and ".jpg" in path]
    assert len(asked) == 128


def test_credentials_come_from_the_key(bucket, made):
    assert ("POST", "/token") in bucket.requests()


def test_a_second_run_makes_only_what_is_missing(bucket, made):
    before = bucket.read("out")
    lost = sorted(shards(before))[3]
    bucket.delete(f"out/{lost}", "out/dataset_info.json")
    seen = len(bucket.created())
    preprocess(*made, *IN_PROCESS, environment=bucket.environment)
    assert bucket.read("out") == before
    again = [name for name in bucket.created()[seen:] if "/stanford_cars-" in name]
    assert again == [f"out/{lost}", f"out/_shards/{lost}.json"]


def verify(bucket, folder) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "pipeline", "verify", folder],
        cwd=ROOT,
        env=bucket.process_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def test_verify_reads_it_back_and_finds_a_changed_byte(bucket, made):
    code, printed = verify(bucket, made[1])
    assert code == 0, printed
    name = "out/" + sorted(shards(bucket.read("out")))[5]
    whole = bucket.read_object(name)
    bucket.write_object(name, whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    code, printed = verify(bucket, made[1])
    bucket.write_object(name, whole)
    assert code == 1
    assert f"{name.removeprefix('out/')}: wrong checksum" in printed


def test_a_killed_run_is_continued(bucket, made):
    data, _ = made
    done = bucket.read("out")
    seen = len(bucket.created())
    job = subprocess.Popen(
        command(data, "gs://cars/killed", *IN_PROCESS),
        cwd=ROOT,
        env=bucket.process_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + SECONDS
        while sum("_shards/stanford_cars-" in name for name in bucket.created()[seen:]) < 3:
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        job.kill()
        job.wait()
    left = bucket.read("killed")
    assert "dataset_info.json" not in left
    finished = {n.removeprefix("_shards/").removesuffix(".json") for n in left if "_shards/st" in n}
    assert 3 <= len(finished) < 64
    seen = len(bucket.created())
    preprocess(data, "gs://cars/killed", *IN_PROCESS, environment=bucket.environment)
    assert bucket.read("killed") == done
    again = {name.removeprefix("killed/") for name in shards_of(bucket.created()[seen:])}
    assert again == shards(done).keys() - finished


def shards_of(names):
    return [name for name in names if "/stanford_cars-" in name and "/_shards/" not in name]


def test_other_options_are_refused_until_overwrite_and_the_commit_goes_first(bucket, made):
    data, out = made[0], "gs://cars/other"
    preprocess(data, out, *FEW_SHARDS, "--colors=8", environment=bucket.environment)
    bucket.write_object("other/notes.txt", b"somebody's own")
    before = bucket.read("other")
    code, printed = try_preprocess(data, out, *FEW_SHARDS, environment=bucket.environment)
    assert code == 2
    assert "--colors was 8, is now 32" in printed
    assert bucket.read("other") == before
    seen = len(bucket.requests())
    preprocess(data, out, *FEW_SHARDS, "--overwrite", environment=bucket.environment)
    after = bucket.read("other")
    assert after.pop("notes.txt") == b"somebody's own"
    assert after.keys() == before.keys() - {"notes.txt"}
    assert json.loads(after["preprocessing.json"])["options"]["colors"] == 32
    deleted = [path for method, path in bucket.requests()[seen:] if method == "DELETE"]
    assert "dataset_info.json" in deleted[0]
    assert len(set(deleted)) == len(after)
    code, printed = verify(bucket, out)
    assert code == 0, printed


def test_a_bad_picture_is_a_row_and_the_budget_holds_the_commit_back(bucket, cars):
    data = bucket.upload(cars, "flawed")
    [bad, *_] = sorted(p.relative_to(cars).as_posix() for p in cars.rglob("*.jpg"))
    bucket.write_object(f"flawed/{bad}", b"not a picture")
    out = "gs://cars/flawed-out"
    flags = (*FEW_SHARDS, "--max_reject_fraction=0")
    code, printed = try_preprocess(data, out, *flags, environment=bucket.environment)
    assert code == 1
    assert "1 of 128 pictures" in printed
    assert "1 not_an_image" in printed
    assert "dataset_info.json" not in bucket.read("flawed-out")
    preprocess(data, out, *FEW_SHARDS, environment=bucket.environment)
    [row] = bucket.read("flawed-out")["rejects.jsonl"].decode().splitlines()
    assert json.loads(row)["path"] == bad
    assert json.loads(row)["reason"] == "not_an_image"


def test_a_bucket_that_is_not_there_costs_one_line(bucket, cars):
    code, printed = try_preprocess(
        cars, "gs://nowhere/out", *IN_PROCESS, environment=bucket.environment
    )
    assert code == 2
    [*_, told] = printed.strip().splitlines()
    assert "error: --output_dir=gs://nowhere/out: " in told
    assert "Traceback" not in printed


MISSING_AND_FORBIDDEN = """
import sys
from pipeline import storage
for path in sys.argv[1:]:
    try:
        print(len(storage.read_bytes(path)))
    except OSError as error:
        print(type(error).__name__, error)
try:
    storage.publish("gs://nowhere/file", "text")
except OSError as error:
    print(str(error).partition(": ")[0])
"""


def test_what_is_not_there_is_told_from_what_cannot_be_read(bucket):
    bucket.write_object("single", b"12345")
    run = subprocess.run(
        [sys.executable, "-c", MISSING_AND_FORBIDDEN, "gs://cars/single", "gs://cars/no"],
        cwd=ROOT,
        env=bucket.process_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert run.stdout.splitlines() == [
        "5",
        "FileNotFoundError no such file: gs://cars/no",
        "gs://nowhere/file cannot be written",
    ]
