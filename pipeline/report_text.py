"""The figures of `report.json` in words, for the page and the terminal alike."""

from collections.abc import Mapping
from typing import Any

SPLIT_COLUMNS = (
    "pictures",
    "classes",
    "per class",
    "shards",
    "size",
    "per picture",
    "input files",
    "PSNR",
    "exact",
)


def file_size(size: float) -> str:
    """Returns a number of bytes to three digits, in units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def decibels(psnr: float | None) -> str:
    """Returns a PSNR, or a dash where nothing was changed."""
    return "–" if psnr is None else f"{psnr:.2f} dB"


def split_row(split: Mapping[str, Any]) -> list[str]:
    """Returns the cells under `SPLIT_COLUMNS` of a split of `report.json`."""
    facts = split["statistics"]
    counts = list(facts["labels"].values())
    span = sorted({min(counts), max(counts)}) if counts else [0]
    return [
        f"{split['records']:,}",
        f"{split['classes']:,}",
        "–".join(f"{count:,}" for count in span),
        f"{split['shards']:,}",
        file_size(split["bytes"]),
        file_size(split["bytes"] / split["records"]) if split["records"] else "–",
        file_size(facts["source_bytes"]),
        decibels(split["psnr"]),
        f"{facts['exact']:,}",
    ]


def distortion(split: Mapping[str, Any]) -> str:
    """Returns what quantization did to the pictures of a split of `report.json`."""
    facts = split["statistics"]
    if not facts["pictures"]:
        return "no picture was written"
    if not facts["colors"]:
        return "not quantized: every picture is stored exactly"
    if split["psnr"] is None:
        return f"all {facts['exact']:,} pictures are reproduced exactly"
    others = facts["pictures"] - facts["exact"]
    exact = f"; {facts['exact']:,} more are reproduced exactly" if facts["exact"] else ""
    return f"PSNR {split['psnr']:.2f} dB over {others:,} pictures{exact}"


def equal_pictures(report: Mapping[str, Any]) -> str:
    """Returns how many pictures are equal to another, and what is harmful about it."""
    groups = report["duplicates"]
    totals = report.get("duplicates_in_all") or {
        "in_all": len(groups),
        "pictures": sum(len(group["ids"]) for group in groups),
        "labels_differ": sum(group["labels_differ"] for group in groups),
        "splits_differ": sum(group["splits_differ"] for group in groups),
    }
    text = f"equal pictures: {totals['pictures']:,} in {totals['in_all']:,} groups"
    if count := totals["labels_differ"]:
        text += f", {count:,} under different labels"
    if count := totals["splits_differ"]:
        text += f", {count:,} in more than one split"
    return text
