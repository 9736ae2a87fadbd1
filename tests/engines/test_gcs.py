"""The job from a bucket to a bucket."""

import subprocess
import sys

import pytest

from tests.engines.gcs_emulator import run_gcs_emulator
from tests.engines.launch import IN_PROCESS, ROOT, preprocess, shards

# They hold the fingerprint, which covers modification times, or the place of the input.
OF_THE_INPUT = ("_shards/", "preprocessing.json", "report.")


@pytest.fixture(scope="session")  # as wide as the data, so that what is missing is asked first
def bucket(tmp_path_factory):
    pytest.importorskip("gcp_storage_emulator", reason="pip install gcp-storage-emulator")
    pytest.importorskip("google.cloud.storage", reason="pip install 'apache-beam[gcp]'")
    with run_gcs_emulator(tmp_path_factory.mktemp("gcs")) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def made(bucket, cars):
    """Runs a job in the bucket; returns the names of input and output folder."""
    data = bucket.upload(cars, "cars")
    preprocess(data, "gs://cars/out", *IN_PROCESS, environment=bucket.environment)
    return data, "gs://cars/out"


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


def test_verify_reads_it_back(bucket, made):
    verify = subprocess.run(
        [sys.executable, "-m", "pipeline", "verify", made[1]],
        cwd=ROOT,
        env=bucket.process_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert verify.returncode == 0, verify.stdout + verify.stderr
