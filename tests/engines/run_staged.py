"""Executes a staged `pipeline.pb` as a Dataflow worker would: with nothing but what is installed.

Run by the interpreter of an environment that holds the staged source distribution. Prints, as JSON,
where the pipeline package was found and which of the trainer's libraries are there.
"""

import importlib.util
import json
import sys

import apache_beam as beam
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner


def main(path: str) -> None:
    with open(path, "rb") as file:
        graph = beam_runner_api_pb2.Pipeline.FromString(file.read())
    for environment in graph.components.environments.values():
        # In place of the container that Dataflow would start: a process of this interpreter.
        environment.urn = python_urns.SUBPROCESS_SDK
        environment.payload = (
            f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main".encode()
        )
        del environment.dependencies[:]
    options = beam.options.pipeline_options.PipelineOptions([])
    FnApiRunner().run_via_runner_api(graph, options).wait_until_finish()
    heavy = [name for name in ("tensorflow", "jax", "keras") if importlib.util.find_spec(name)]
    print(json.dumps({"pipeline": importlib.util.find_spec("pipeline").origin, "heavy": heavy}))


if __name__ == "__main__":
    main(sys.argv[1])
