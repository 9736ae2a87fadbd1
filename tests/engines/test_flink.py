"""The cluster part; the job follows."""

import pytest

from tests.engines.flink import EngineMissingError, require_flink, run_flink_cluster


def test_cluster_notices_the_loss_of_a_task_manager(tmp_path):
    try:
        require_flink()
    except EngineMissingError as missing:
        pytest.skip(str(missing))
    with run_flink_cluster(tmp_path / "flink") as cluster:
        assert cluster.rest("/overview")["flink-version"].startswith("1.20.")
        victim, survivor = cluster.task_managers
        victim.kill()
        survivor.wait_until(lambda: cluster.count_task_managers() == 1, "alone")
