"""The job on a real Flink cluster of two task managers, and what the loss of one of them does."""

import pytest

from tests.engines.flink import (
    FLINK_VERSION,
    EngineMissingError,
    require_flink,
    require_job_server,
    run_flink_cluster,
)
from tests.engines.launch import preprocess, preprocess_and_break, read_folder
from tests.engines.processes import run_worker_pool


@pytest.fixture(scope="session")  # as wide as the data, so that what is missing is asked first
def job_server():
    try:
        require_flink()
        return require_job_server()
    except EngineMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def flink(job_server, tmp_path):
    """The cluster, and the options that send a job to it and to workers outside of it."""
    folder = tmp_path / "flink"
    with run_flink_cluster(folder) as cluster, run_worker_pool(folder) as (_, workers):
        yield (
            cluster,
            [
                "--runner=FlinkRunner",
                f"--flink_version={FLINK_VERSION}",
                f"--flink_master={cluster.address}",
                f"--flink_job_server_jar={job_server}",
                "--parallelism=2",
                *workers,
            ],
        )


def test_cluster_notices_the_loss_of_a_task_manager(tmp_path):
    try:
        require_flink()
    except EngineMissingError as missing:
        pytest.skip(str(missing))
    with run_flink_cluster(tmp_path / "flink") as cluster:
        assert cluster.rest("/overview")["flink-version"].startswith(FLINK_VERSION)
        victim, survivor = cluster.task_managers
        victim.kill()
        survivor.wait_until(lambda: cluster.count_task_managers() == 1, "alone")


@pytest.mark.genuine
def test_every_byte_is_that_of_a_local_run(flink, genuine_cars, genuine_local, tmp_path):
    preprocess(genuine_cars, tmp_path / "out", *flink[1])
    assert read_folder(tmp_path / "out") == genuine_local


def test_killed_task_manager_costs_no_byte(flink, cars, local, tmp_path):
    cluster, flags = flink
    output = tmp_path / "out"
    code, printed = preprocess_and_break(cars, output, cluster.task_managers[0].kill, *flags)
    print("the job recovered" if code == 0 else f"the job failed: {printed[-2000:]}")
    if code != 0:
        assert not (output / "dataset_info.json").exists(), printed
        preprocess(cars, output, *flags)
    assert read_folder(output) == local
