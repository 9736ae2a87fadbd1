"""The job on Prism, with its workers in processes that the engine did not start."""

import pytest

from tests.engines.launch import preprocess, preprocess_and_break, read_folder
from tests.engines.prism import find_prism, run_prism
from tests.engines.processes import run_worker_pool


@pytest.fixture(scope="session")  # as wide as the data, so that what is missing is asked first
def prism(tmp_path_factory):
    """The pool of workers, and the options that send a job to the engine and to them."""
    binary = find_prism()
    if binary is None:
        pytest.skip(
            "no prism; go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0, "
            "or name it in PRISM"
        )
    folder = tmp_path_factory.mktemp("prism")
    with run_prism(binary, folder) as engine, run_worker_pool(folder) as (pool, workers):
        yield pool, [*engine, *workers]


def test_every_byte_is_that_of_a_local_run(prism, cars, local, tmp_path):
    preprocess(cars, tmp_path / "out", *prism[1])
    assert read_folder(tmp_path / "out") == local


@pytest.mark.genuine
def test_genuine_pictures_too(prism, genuine_cars, genuine_local, tmp_path):
    preprocess(genuine_cars, tmp_path / "out", *prism[1])
    assert read_folder(tmp_path / "out") == genuine_local


def test_killed_worker_fails_the_job_and_a_second_run_resumes(prism, cars, local, tmp_path):
    pool, flags = prism
    output = tmp_path / "out"
    code, printed = preprocess_and_break(cars, output, lambda: pool.kill_children(), *flags)
    assert code == 1, printed
    assert not (output / "dataset_info.json").exists()
    # A shard whose sidecar was not written any more is made again.
    finished = {path: path.stat().st_mtime_ns for path in output.glob("_shards/stanford_cars-*")}
    assert 0 < len(finished) < 64
    preprocess(cars, output, *flags)
    assert read_folder(output) == local
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
