"""What Dataflow would be handed, executed where nothing else is installed.

The real command submits to DataflowRunner, with a template as its target, so everything is staged
in an emulated bucket and no service is called. The staged graph then runs in a fresh environment
that holds only the staged source distribution and its requirements: a name that lives in the
launcher's memory, a module left out of setup.py or a worker that needs TensorFlow fails here.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.engines.launch import ROOT, preprocess, shards

INSTALL_SECONDS = 300
UNREACHABLE = ("dns error", "error sending request", "Connection refused", "timed out")


@pytest.fixture(scope="module")
def staged(bucket, cars):
    """Submits the job; returns the staged files by their last name."""
    preprocess(
        bucket.upload(cars, "dataflow-in"),
        "gs://cars/dataflow-out",
        "--runner=DataflowRunner",
        "--project=offline",
        "--region=us-central1",
        "--temp_location=gs://cars/temp",
        "--staging_location=gs://cars/staging",
        "--template_location=gs://cars/template.json",
        f"--setup_file={ROOT / 'setup.py'}",
        environment=bucket.environment,
    )
    return {name.rsplit("/", 1)[1]: data for name, data in bucket.read("staging").items()}


@pytest.fixture(scope="module")
def worker_python(staged, tmp_path_factory):
    """An interpreter that has the staged source distribution, its requirements and no more."""
    uv = shutil.which(
        "uv", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    )
    if uv is None:
        pytest.skip("there is no uv to make a clean environment with")
    folder = tmp_path_factory.mktemp("worker")
    (folder / "workflow.tar.gz").write_bytes(staged["workflow.tar.gz"])
    python = folder / "venv" / "bin" / "python"
    for command in (
        [uv, "venv", "--python", sys.executable, str(folder / "venv")],
        # A Dataflow worker's image holds Beam with its Google Cloud parts already.
        [
            *(uv, "pip", "install", "--python", str(python)),
            *("--constraint", str(ROOT / "constraints.txt")),
            "apache-beam[gcp]",
            str(folder / "workflow.tar.gz"),
        ],
    ):
        step = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
        if step.returncode and any(word in step.stderr for word in UNREACHABLE):
            pytest.skip(f"no package registry: {step.stderr.strip().splitlines()[-1]}")
        assert step.returncode == 0, step.stderr
    return python


def test_graph_code_and_job_are_staged(bucket, staged):
    assert {"pipeline.pb", "workflow.tar.gz"} <= staged.keys()
    template = json.loads(bucket.read_object("template.json"))
    assert template["name"]
    # Dataflow refuses a graph of 20 MB; this one does not grow with the number of pictures.
    assert len(staged["pipeline.pb"]) < 200_000


def test_nothing_is_made_before_the_template_runs(bucket, staged):
    assert not shards(bucket.read("dataflow-out"))


def test_staged_graph_makes_the_bytes_of_a_local_run(
    bucket, staged, worker_python, local, tmp_path
):
    (tmp_path / "pipeline.pb").write_bytes(staged["pipeline.pb"])
    (tmp_path / "run_staged.py").write_text((ROOT / "tests/engines/run_staged.py").read_text())
    environment = bucket.process_environment()
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [str(worker_python), "run_staged.py", "pipeline.pb"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["pipeline"].startswith(str(worker_python.parents[1]))
    assert seen["heavy"] == []
    remote = bucket.read("dataflow-out")
    assert shards(remote) == shards(local)
    assert remote["dataset_info.json"] == local["dataset_info.json"]
