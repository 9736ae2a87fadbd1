"""The last step of the job: count the shards, then write rejects, report and metadata.

`dataset_info.json` comes last and is the commit. Nothing written here holds a time or a random
number, so a runner may run this step twice, even at once.
"""

import json
import os
import tempfile
from collections.abc import Iterable

import tensorflow_datasets as tfds

from pipeline import plan as plans
from pipeline import storage
from pipeline.plan import Plan
from pipeline.records import DATASET_NAME, FORMAT_VERSION, features
from pipeline.rejects import Reject, check_budget, to_jsonl
from pipeline.report import SplitSummary, Thumbnail, make_report
from pipeline.shards import Sidecar, read_sidecar
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
    files = storage.list_folder(output_dir)
    sidecars = {name: _read_split(output_dir, plan, name, files) for name in plan.splits}
    every = [sidecar for split in sidecars.values() for sidecar in split]
    rejects = plans.read_missing(output_dir) + [r for s in every for r in s.rejects]

    def publish(name: str, content: str | bytes) -> None:
        storage.publish(storage.join(output_dir, name), content)

    publish(plans.REJECTS, to_jsonl(rejects))
    check_rejects(plan, rejects, max_reject_fraction, output_dir)
    equal = duplicates(every)
    report = make_report(
        plan.to_json(),
        plan.class_names,
        {name: summarize(split) for name, split in sidecars.items()},
        sorted(rejects),
        [tuple(group) for group in equal],
        labels={id: label for group in equal for id, label in group.items()},
    )
    publish(plans.REPORT_JSON, json.dumps(report.json, indent=1, ensure_ascii=False) + "\n")
    publish(plans.REPORT_HTML, report.html)
    metadata = tfds_metadata(plan, sidecars)
    commit = metadata.pop(plans.DATASET_INFO)
    for name, content in sorted(metadata.items()):
        publish(name, content)
    publish(plans.DATASET_INFO, commit)


def check_rejects(
    plan: Plan, rejects: list[Reject], max_reject_fraction: float, output_dir: str
) -> None:
    """Raises `TooManyRejectsError` if more pictures were left out than the user allows."""
    reasons: dict[str, int] = {}
    for reject in rejects:
        reasons[reject.reason] = reasons.get(reject.reason, 0) + 1
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
    check_budget(
        len(rejects),
        plan.found + plan.missing,
        max_reject_fraction,
        f"{told}; see {storage.join(output_dir, plans.REJECTS)}",
    )


def _read_split(
    output_dir: str, plan: Plan, split: str, files: dict[str, storage.Entry]
) -> list[Sidecar]:
    sidecars = []
    for shard in plan.shards(split):
        sidecar = read_sidecar(output_dir, shard)
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
        sidecars.append(sidecar)
    return sidecars


def summarize(sidecars: Iterable[Sidecar]) -> SplitSummary:
    """Returns the sum of a split's sidecars."""
    records = shards = size = 0
    statistics = Statistics()
    thumbnails: list[Thumbnail] = []
    for sidecar in sidecars:
        records += sidecar.records
        shards += 1
        size += sidecar.bytes
        statistics = statistics + sidecar.statistics
        thumbnails += sidecar.thumbnails
    return SplitSummary(
        records=records,
        shards=shards,
        bytes=size,
        statistics=statistics,
        thumbnails=tuple(thumbnails[: plans.THUMBNAILS_PER_SPLIT]),
    )


def duplicates(sidecars: Iterable[Sidecar]) -> list[dict[str, int]]:
    """Returns the pictures with equal pixels: for each group of them the labels by id, sorted."""
    by_hash: dict[str, dict[str, int]] = {}
    for sidecar in sidecars:
        for content_hash, id, label in sidecar.contents:
            by_hash.setdefault(content_hash, {})[id] = label
    groups = [dict(sorted(group.items())) for group in by_hash.values() if len(group) > 1]
    return sorted(groups, key=list)


def tfds_metadata(plan: Plan, sidecars: dict[str, list[Sidecar]]) -> dict[str, bytes]:
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
                        shard_lengths=[sidecar.records for sidecar in split],
                        num_bytes=sum(sidecar.bytes for sidecar in split),
                        filename_template=template.replace(split=name),
                    )
                    for name, split in sidecars.items()
                    if any(sidecar.records for sidecar in split)
                ]
            )
        )
        info.write_to_directory(folder)
        files: dict[str, bytes] = {}
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as file:
                files[name] = file.read()
        return files
