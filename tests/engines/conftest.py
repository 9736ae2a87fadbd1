"""Data sets and local reference runs for the tests of engines other than the local one."""

import os
import pathlib

import pytest

from tests.engines.gcs_emulator import run_gcs_emulator
from tests.engines.launch import IN_PROCESS, ROOT, preprocess, read_folder
from tests.pipeline.folders import draw

GENUINE_CLASSES, GENUINE_PICTURES = 16, 2


@pytest.fixture(scope="session")
def cars(tmp_path_factory) -> pathlib.Path:
    """A folder of 128 drawn pictures, which become 64 shards."""
    folder = tmp_path_factory.mktemp("cars")
    draw(folder, train=96, test=32)
    return folder


@pytest.fixture(scope="session")
def genuine_cars(tmp_path_factory) -> pathlib.Path:
    """A folder with links to 64 genuine pictures."""
    given = os.environ.get("STANFORD_CARS_DATA", ROOT.parent / "shared" / "data")
    source = pathlib.Path(given) / "car_crops"
    if not source.is_dir():
        pytest.skip(f"no genuine pictures in {source}")
    folder = tmp_path_factory.mktemp("genuine")
    for split in ("train", "test"):
        for cars in sorted((source / split).iterdir())[:GENUINE_CLASSES]:
            (folder / split / cars.name).mkdir(parents=True)
            for picture in sorted(cars.iterdir())[:GENUINE_PICTURES]:
                (folder / split / cars.name / picture.name).symlink_to(picture)
    return folder


@pytest.fixture(scope="session")  # as wide as the data, so that what is missing is asked first
def bucket(tmp_path_factory):
    """An emulated bucket, the same for all tests; each keeps to prefixes of its own."""
    pytest.importorskip("gcp_storage_emulator", reason="pip install gcp-storage-emulator")
    pytest.importorskip("google.cloud.storage", reason="pip install 'apache-beam[gcp]'")
    with run_gcs_emulator(tmp_path_factory.mktemp("gcs")) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def local(cars, tmp_path_factory) -> dict[str, bytes]:
    """Every file that a local run makes of `cars`."""
    output = tmp_path_factory.mktemp("local") / "out"
    preprocess(cars, output, *IN_PROCESS)
    return read_folder(output)


@pytest.fixture(scope="session")
def genuine_local(genuine_cars, tmp_path_factory) -> dict[str, bytes]:
    """Every file that a local run makes of `genuine_cars`."""
    output = tmp_path_factory.mktemp("genuine-local") / "out"
    preprocess(genuine_cars, output, *IN_PROCESS)
    return read_folder(output)
