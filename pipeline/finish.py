"""The last step of the job: count the shards, then write rejects, report and metadata.

Sidecars are read one at a time; what they hold of each picture is sorted on disk.
`dataset_info.json` comes last and is the commit. Nothing written here holds a time or a random
number, so a runner may run this step twice, even at once.
"""

import collections
import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import tensorflow_datasets as tfds

from pipeline import duplicates, storage
from pipeline import plan as plans
from pipeline.duplicates import Content
from pipeline.plan import Plan
from pipeline.read_ahead import read_ahead
from pipeline.records import DATASET_NAME, FORMAT_VERSION, features
from pipeline.rejects import Reject, check_budget, sort, to_jsonl
from pipeline.report import SplitSummary, Thumbnail, make_report
from pipeline.shards import Sidecar, read_sidecar
from pipeline.spool import Rows, Sorter
from pipeline.statistics import Statistics


class IncompleteError(RuntimeError):
    """A shard is not there although its worker said that it is."""


def finish(output_dir: str, plan: Plan, max_reject_fraction: float) -> None:
    """Commits a run whose shards are all written.

    Raises:
        PlanError: if another plan has taken the folder over.
        IncompleteError: if a shard lacks its file or its sidecar.
        TooManyRejectsError: if the reject budget is spent; `rejects.jsonl` is there then.
    """
    plans.require_claim(output_dir, plan)
    splits, contents, rejects = _gather(output_dir, plan)

    def publish(name: str, content: str | bytes) -> None:
        storage.publish(storage.join(output_dir, name), content)

    with storage.publishing(storage.join(output_dir, plans.REJECTS)) as file:
        file.writelines(line.encode() for line in to_jsonl(rejects))
    check_rejects(plan, rejects, max_reject_fraction, output_dir)
    report = make_report(
        plan.to_json(),
        plan.class_names,
        {name: split.summary() for name, split in splits.items()},
        rejects,
        duplicates.find(contents, plan.splits),
    )
    publish(plans.REPORT_JSON, json.dumps(report.json, indent=1, ensure_ascii=False) + "\n")
    publish(plans.REPORT_HTML, report.html)
    metadata = tfds_metadata(plan, splits)
    commit = metadata.pop(plans.DATASET_INFO)
    for name, content in sorted(metadata.items()):
        publish(name, content)
    publish(plans.DATASET_INFO, commit)


@dataclasses.dataclass
class SplitSums:
    """What the sidecars of a split add up to; grows with the shards, not with the pictures.

    Attributes:
        shard_lengths: records of each shard, in order.
        bytes: size of the shards.
        statistics: of the pictures.
        thumbnails: the first ones.
    """

    shard_lengths: list[int] = dataclasses.field(default_factory=list)
    bytes: int = 0
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    thumbnails: list[Thumbnail] = dataclasses.field(default_factory=list)

    def add(self, sidecar: Sidecar) -> None:
        """Adds the next shard."""
        self.shard_lengths.append(sidecar.records)
        self.bytes += sidecar.bytes
        self.statistics = self.statistics + sidecar.statistics
        wanted = plans.THUMBNAILS_PER_SPLIT - len(self.thumbnails)
        self.thumbnails += sidecar.thumbnails[:wanted]

    def summary(self) -> SplitSummary:
        """Returns what the report tells of the split."""
        return SplitSummary(
            records=sum(self.shard_lengths),
            shards=len(self.shard_lengths),
            bytes=self.bytes,
            statistics=self.statistics,
            thumbnails=tuple(self.thumbnails),
        )


def _gather(
    output_dir: str, plan: Plan
) -> tuple[dict[str, SplitSums], Rows[Content], Rows[Reject]]:
    """Reads each sidecar once.

    Returns:
        The sums by split; hash, id and label of each picture, sorted; the rejects, sorted.
    """
    files = storage.list_folder(output_dir)
    splits = {name: SplitSums() for name in plan.splits}
    contents = Sorter(columns=3, by=2)

    def rejects() -> Iterator[Reject]:
        yield from plans.read_missing(output_dir)
        for name, sums in splits.items():
            for sidecar in _sidecars(output_dir, plan, name, files):
                sums.add(sidecar)
                contents.extend(sidecar.contents)
                yield from sidecar.rejects

    left_out = sort(rejects())
    return splits, contents.sorted(lambda *content: content), left_out


def _sidecars(
    output_dir: str, plan: Plan, split: str, files: Mapping[str, storage.Entry]
) -> Iterator[Sidecar]:
    """Yields the sidecar of each shard, in order; `files` are those of the output folder."""
    shards = plan.shards(split)
    # Read ahead, because on an object store each takes a round trip and a large job has thousands.
    with contextlib.closing(read_ahead(lambda s: read_sidecar(output_dir, s), shards)) as sidecars:
        for shard, sidecar in zip(shards, sidecars, strict=True):
            file = files.get(shard.file_name)
            if (
                sidecar is None
                or sidecar.fingerprint != plan.fingerprint
                or file is None
                or file.size != sidecar.bytes
            ):
                raise IncompleteError(
                    f"{storage.join(output_dir, shard.file_name)} is not finished; "
                    "run the same command again to make it"
                )
            yield sidecar


def check_rejects(
    plan: Plan, rejects: Iterable[Reject], max_reject_fraction: float, output_dir: str
) -> None:
    """Raises `TooManyRejectsError` if more pictures were left out than the user allows."""
    reasons = collections.Counter(reject.reason for reject in rejects)
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
    check_budget(
        reasons.total(),
        plan.found + plan.missing,
        max_reject_fraction,
        f"{told}; see {storage.join(output_dir, plans.REJECTS)}",
    )


def tfds_metadata(plan: Plan, splits: Mapping[str, SplitSums]) -> dict[str, bytes]:
    """Returns the files that make TFDS know the folder, by name.

    A split without any record is left out: TFDS refuses to open a data set that has one.
    """
    with tempfile.TemporaryDirectory() as folder:
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=DATASET_NAME, filetype_suffix="tfrecord"
        )
        info = tfds.core.DatasetInfo(
            builder=tfds.core.dataset_info.DatasetIdentity(
                name=DATASET_NAME,
                version=tfds.core.Version(f"{FORMAT_VERSION}.0.0"),
                data_dir=folder,
                module_name="",
            ),
            description="Stanford Cars, k-means quantized, made by stanford-cars-tpu.",
            features=features(plan.picture, plan.class_names),
            supervised_keys=("image", "label") if plan.picture.is_png else None,
        )
        info.set_file_format("tfrecord")
        info.set_splits(
            tfds.core.splits.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=name,
                        shard_lengths=split.shard_lengths,
                        num_bytes=split.bytes,
                        filename_template=template.replace(split=name),
                    )
                    for name, split in splits.items()
                    if any(split.shard_lengths)
                ]
            )
        )
        info.write_to_directory(folder)
        files: dict[str, bytes] = {}
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as file:
                files[name] = file.read()
        return files
