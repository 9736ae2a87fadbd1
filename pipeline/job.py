"""The Beam graph: paths are grouped into shards, each shard is written by one worker, then commit.

Only paths are shuffled. A shard is the unit of parallelism, of retry and of resume, and the last
step runs inside the graph, so that a job whose launcher went away commits all the same.
"""

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from pipeline import plan as plans
from pipeline import storage
from pipeline.convert import Converted, Converter
from pipeline.finish import finish
from pipeline.listing import CarImage
from pipeline.plan import Plan
from pipeline.rejects import Reject
from pipeline.shards import Shard, read_finished, shard_of, write
from pipeline.tally import tally

ShardKey = tuple[str, int]


@dataclasses.dataclass(eq=False)  # not frozen: Beam assigns `pipeline` to a root transform
class Preprocess(beam.PTransform):
    """The whole job, from the manifests in `output_dir` to the committed data set there.

    Attributes:
        output_dir: a folder that `plan` has claimed.
        plan: what to make.
        max_reject_fraction: share of pictures that may be missing or bad.
    """

    output_dir: str
    plan: Plan
    max_reject_fraction: float

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Wires the graph."""
        rows = (
            pipeline
            # A graph that named each manifest would be too large for Dataflow one day.
            | "ManifestCount" >> beam.Create([self.plan.manifests])
            | "Manifests" >> beam.FlatMap(self._manifests).with_output_types(str)
            | "SpreadManifests" >> beam.Reshuffle()
            | "ReadRows" >> beam.FlatMap(plans.read_manifest)
            | "AssignShard" >> beam.Map(self._assign).with_output_types(tuple[ShardKey, CarImage])
        )
        shards = (
            pipeline
            | "Splits" >> beam.Create(sorted(self.plan.splits))
            | "EveryShard"
            >> beam.FlatMap(self._every_shard).with_output_types(tuple[ShardKey, None])
        )
        return (
            {"images": rows, "shards": shards}
            | "GroupByShard" >> beam.CoGroupByKey()
            | "WriteShard" >> beam.ParDo(WriteShard(self.output_dir, self.plan))
            | "AwaitAllShards" >> beam.combiners.Count.Globally()
            | "Commit" >> beam.Map(self._commit)
        )

    def _manifests(self, count: int) -> Iterator[str]:
        return (plans.manifest_path(self.output_dir, index) for index in range(count))

    def _assign(self, image: CarImage) -> tuple[ShardKey, CarImage]:
        return (image.split, shard_of(image.id, self.plan.splits[image.split].shards)), image

    def _every_shard(self, split: str) -> Iterator[tuple[ShardKey, None]]:
        # A shard to which no picture falls is written all the same.
        for shard in self.plan.shards(split):
            yield (split, shard.index), None

    def _commit(self, _: int) -> None:
        finish(self.output_dir, self.plan, self.max_reject_fraction)


class WriteShard(beam.DoFn):
    """Writes one shard, unless an earlier run has finished it."""

    def __init__(self, output_dir: str, plan: Plan) -> None:
        self._output_dir = output_dir
        self._plan = plan
        self._pictures = Metrics.counter("preprocess", "pictures")
        self._rejects = Metrics.counter("preprocess", "rejects")
        self._bytes = Metrics.counter("preprocess", "bytes")
        self._skipped = Metrics.counter("preprocess", "shards-skipped")
        self._milliseconds = Metrics.distribution("preprocess", "shard-ms")

    def setup(self) -> None:
        """Builds the schema once per worker, and checks that it would write the plan's bytes."""
        plans.require_versions(self._plan)
        self._converter = Converter(self._plan.picture, self._plan.class_names)

    def process(self, group: tuple[ShardKey, dict[str, Iterable[CarImage]]]) -> Iterator[ShardKey]:
        """Yields the key of the shard when it is there."""
        (split, index), values = group
        shard = Shard(split, index, self._plan.splits[split].shards)
        if read_finished(self._output_dir, shard, self._plan.fingerprint):
            self._skipped.inc()
        else:
            plans.require_claim(self._output_dir, self._plan)
            start = time.monotonic()
            with tally(self._output_dir, shard) as tell:
                sidecar = write(
                    self._output_dir,
                    shard,
                    values["images"],
                    self._converter,
                    fingerprint=self._plan.fingerprint,
                    thumbnails=self._plan.thumbnails(shard),
                    on_picture=lambda result: self._count(result, tell),
                )
            self._bytes.inc(sidecar.bytes)
            self._milliseconds.update(int(1000 * (time.monotonic() - start)))
        yield split, index

    def _count(self, result: Converted | Reject, tell: Callable[[bool], None]) -> None:
        rejected = isinstance(result, Reject)
        (self._rejects if rejected else self._pictures).inc()
        tell(rejected)


def local_runner() -> FnApiRunner:
    """Returns Beam's local engine with `--direct_num_workers` processes of `pipeline.worker`.

    Plain DirectRunner would first look for a binary on the network and then fall back without a
    word, so which engine runs would depend on the weather.
    """
    # exec: Beam starts this through a shell, which would stand between the worker and its parent.
    # Two arenas of glibc: one for each reading thread lets a worker grow with what it has done.
    python = shlex.quote(sys.executable)
    command = f"exec env MALLOC_ARENA_MAX=2 {python} -m pipeline.worker {os.getpid()}"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


def run(
    output_dir: str, plan: Plan, max_reject_fraction: float, beam_options: PipelineOptions
) -> None:
    """Runs the job and waits for its end.

    The engine is the one that `beam_options` names; without a name, `local_runner`.
    """
    named = beam_options.view_as(StandardOptions).runner
    pipeline = beam.Pipeline(runner=named or local_runner(), options=beam_options)
    # Workers of another engine may run in another folder.
    absolute = os.path.abspath(output_dir) if storage.is_local(output_dir) else output_dir
    pipeline | Preprocess(absolute, plan, max_reject_fraction)
    pipeline.run().wait_until_finish()
