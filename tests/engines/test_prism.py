"""The job on Prism, with its workers in processes that the engine did not start."""

import pytest

from tests.engines.launch import preprocess, read_folder
from tests.engines.prism import find_prism, run_prism
from tests.engines.processes import run_worker_pool


@pytest.fixture(scope="module")
def prism_flags(tmp_path_factory):
    binary = find_prism()
    if binary is None:
        pytest.skip(
            "no prism; go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0, "
            "or name it in PRISM"
        )
    folder = tmp_path_factory.mktemp("prism")
    with run_prism(binary, folder) as engine, run_worker_pool(folder) as workers:
        yield [*engine, *workers]


def test_every_byte_is_that_of_a_local_run(prism_flags, cars, local, tmp_path):
    preprocess(cars, tmp_path / "out", *prism_flags)
    assert read_folder(tmp_path / "out") == local


@pytest.mark.genuine
def test_genuine_pictures_too(prism_flags, genuine_cars, genuine_local, tmp_path):
    preprocess(genuine_cars, tmp_path / "out", *prism_flags)
    assert read_folder(tmp_path / "out") == genuine_local
