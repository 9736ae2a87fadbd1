"""The flex template: its specification against Google's own types and against the real flags.

The launcher's container cannot be run without Docker. What it does inside is: call the file that
FLEX_TEMPLATE_PYTHON_PY_FILE names, with the parameters and Dataflow's options as flags. One of them
is --template_location, so that the job is written down, not submitted.
"""

import argparse
import json
import re
import subprocess
import sys

import pytest

from pipeline import __main__ as cli
from tests.engines.launch import ROOT, SECONDS, shards

SPEC = ROOT / "docker" / "flex_template.json"
DOCKERFILE = ROOT / "docker" / "pipeline.Dockerfile"
# Dataflow's BOOLEAN passes =true, which a switch does not take; a template must not destroy anyway.
NOT_OFFERED = {"help", "overwrite"}


@pytest.fixture(scope="module")
def parameters() -> dict[str, dict]:
    rows = json.loads(SPEC.read_text())["metadata"]["parameters"]
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


@pytest.fixture(scope="module")
def flags() -> dict[str, argparse.Action]:
    [commands] = [action for action in cli._parser()._actions if isinstance(action.choices, dict)]
    return {action.dest: action for action in commands.choices["preprocess"]._actions}


def test_dataflow_understands_the_specification():
    types = pytest.importorskip(
        "google.cloud.dataflow_v1beta3.types", reason="pip install 'apache-beam[gcp]'"
    )
    spec = types.ContainerSpec.from_json(SPEC.read_text(), ignore_unknown_fields=False)
    assert spec.sdk_info.language == types.SDKInfo.Language.PYTHON
    assert spec.image == spec.default_environment.sdk_container_image
    for parameter in spec.metadata.parameters:
        assert parameter.param_type != types.ParameterType.DEFAULT
        assert parameter.label
        assert parameter.help_text


def test_its_parameters_are_the_flags_of_the_program(parameters, flags):
    assert parameters.keys() == flags.keys() - NOT_OFFERED
    for name, flag in flags.items():
        if name not in NOT_OFFERED:
            row = parameters[name]
            assert row.get("isOptional", False) == (not flag.required), name
            if flag.choices:
                assert [o["value"] for o in row["enumOptions"]] == list(flag.choices), name


def test_its_defaults_are_those_of_the_program(parameters, flags):
    for name, row in parameters.items():
        if flags[name].default is None:  # required; or --encoding, which depends on --colors
            assert "defaultValue" not in row, name
        else:
            assert flags[name].type(row["defaultValue"]) == flags[name].default, name


def test_its_expressions_accept_the_defaults_and_refuse_nonsense(parameters):
    for name, row in parameters.items():
        for regex in row.get("regexes", []):
            assert re.match(regex, row.get("defaultValue", "gs://bucket/folder")), name
            for wrong in ("", "-1", "0.5.5", "two", "/folder"):
                assert not re.match(regex, wrong), (name, wrong)


def test_the_layouts_offered_are_all(parameters):
    from pipeline.layouts import LAYOUTS

    offered = {option["value"] for option in parameters["layout"]["enumOptions"]}
    assert offered == {"auto", *LAYOUTS}


def test_the_image_holds_what_the_launcher_calls():
    text = DOCKERFILE.read_text()
    [named] = re.findall(r"FLEX_TEMPLATE_PYTHON_PY_FILE=(\S+)", text)
    assert named == "/opt/pipeline/flex_template.py"
    assert "WORKDIR /opt/pipeline" in text
    assert "COPY docker/flex_template.py ./" in text


def test_the_launcher_s_call_writes_the_job_down(bucket, cars):
    data = bucket.upload(cars, "flex")
    call = [
        *(sys.executable, str(ROOT / "docker" / "flex_template.py")),
        f"--data_dir={data}",
        "--output_dir=gs://cars/flex-out",
        "--colors=16",
        "--runner=DataflowRunner",
        "--project=offline",
        "--region=us-central1",
        "--job_name=cars",
        "--temp_location=gs://cars/flex-temp",
        "--staging_location=gs://cars/flex-staging",
        "--template_location=gs://cars/flex-launch/job_object",
        "--sdk_container_image=us-central1-docker.pkg.dev/offline/cars/pipeline",
    ]
    run = subprocess.run(
        call,
        env={**bucket.process_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    job = json.loads(bucket.read_object("flex-launch/job_object"))
    assert job["name"].startswith("cars")
    assert "us-central1-docker.pkg.dev/offline/cars/pipeline" in json.dumps(job)
    made = json.loads(bucket.read_object("flex-out/preprocessing.json"))
    assert made["options"]["colors"] == 16
    assert not shards(bucket.read("flex-out"))
