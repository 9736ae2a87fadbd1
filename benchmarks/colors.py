"""What colours cost in accuracy: one recipe on 24-bit, 64, 32, 16 and 8 colours, several seeds.

    python -m benchmarks.colors --images=DIR --work=DIR --seeds=2 --trainer_flags="--config=scratch"

Every run is a folder of its own in `--work`;
started again with the same command, the benchmark continues where it was, within a run too. After
each run it writes `colors.json`, `colors.md` and `colors.png` there.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from trainer.evaluate import wilson

COLORS = (0, 64, 32, 16, 8)  # 0 is 24-bit colour


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        colors: palette size; 0 for 24-bit colour.
        seed: of the run.
        epochs: trained.
        top1: share of the test pictures whose class came first, after the last step.
        top5: likewise among the first five.
    """

    colors: int
    seed: int
    epochs: float
    top1: float
    top5: float


def call(module: str, *arguments: str) -> None:
    """Runs `python -m <module>` with this process's output; its failure ends the benchmark."""
    done = subprocess.run([sys.executable, "-m", module, *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def preprocess(images: Path, work: Path, colors: int, image_size: int) -> Path:
    """Makes the shards of one number of colours; returns at once where they are finished."""
    shards = work / f"shards-{colors}"
    call(
        "pipeline",
        "preprocess",
        f"--data_dir={images}",
        f"--output_dir={shards}",
        f"--colors={colors}",
        f"--image_size={image_size}",
        f"--encoding={'indexed' if colors else 'rgb'}",
    )
    return shards


def train(shards: Path, work: Path, colors: int, seed: int, flags: Sequence[str]) -> Result:
    """Trains one run, or continues to, and returns what it reached on the test split."""
    model = work / f"colors-{colors}-seed-{seed}"
    call(
        "trainer", "train", f"--data_dir={shards}", f"--model_dir={model}", f"--seed={seed}", *flags
    )
    last = json.loads((model / "history.json").read_text())["evaluation"][-1]
    return Result(colors, seed, last["epoch"], last["top1"], last["top5"])


def count_test_pictures(shards: Path) -> int:
    """Returns the number of test pictures of a data set."""
    splits = json.loads((shards / "dataset_info.json").read_text())["splits"]
    return sum(int(n) for s in splits if s["name"] == "test" for n in s["shardLengths"])


def name(colors: int) -> str:
    """Returns how a number of colours is written in tables and plots."""
    return str(colors) if colors else "24-bit"


def table(results: Sequence[Result], pictures: int, flags: Sequence[str]) -> str:
    """Returns the results in Markdown, a row for each number of colours.

    The interval is Wilson's for the mean of the seeds on the test pictures: the seeds share these,
    so more seeds do not make it narrower.
    """
    lines = [
        f"`python -m trainer train {' '.join(flags)}`, {pictures:,} test pictures.",
        "",
        "| colours | seeds | top-1, % | 95 % interval | each seed | top-5, % |",
        "|---|---|---|---|---|---|",
    ]
    for colors in dict.fromkeys(row.colors for row in results):
        rows = [row for row in results if row.colors == colors]
        top1 = statistics.fmean(row.top1 for row in rows)
        low, high = wilson(top1, pictures)
        each = ", ".join(f"{100 * row.top1:.1f}" for row in rows)
        top5 = statistics.fmean(row.top5 for row in rows)
        lines.append(
            f"| {name(colors)} | {len(rows)} | {100 * top1:.1f} | {100 * low:.1f} – "
            f"{100 * high:.1f} | {each} | {100 * top5:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, results: Sequence[Result], pictures: int) -> None:
    """Draws top-1 over the number of colours: seeds as dots, their mean with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    colors = sorted({row.colors for row in results}, key=lambda value: value or 1 << 24)
    place = {value: i for i, value in enumerate(colors)}
    means = [statistics.fmean(r.top1 for r in results if r.colors == value) for value in colors]
    bounds = [wilson(mean, pictures) for mean in means]
    axes.errorbar(
        range(len(colors)),
        [100 * mean for mean in means],
        yerr=[
            [100 * (mean - low) for mean, (low, _) in zip(means, bounds, strict=True)],
            [100 * (high - mean) for mean, (_, high) in zip(means, bounds, strict=True)],
        ],
        fmt="o-",
        capsize=4,
        label=f"mean, 95 % interval for {pictures:,} test pictures",
    )
    axes.plot(
        [place[row.colors] for row in results],
        [100 * row.top1 for row in results],
        "x",
        color="black",
        markersize=6,
        label="one seed",
    )
    axes.set_xticks(range(len(colors)), [name(value) for value in colors])
    axes.set_xlabel("colours a picture")
    axes.set_ylabel("top-1, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


def report(work: Path, results: Sequence[Result], pictures: int, flags: Sequence[str]) -> None:
    """Writes what is known so far."""
    rows = [dataclasses.asdict(row) for row in results]
    (work / "colors.json").write_text(json.dumps(rows, indent=1) + "\n")
    (work / "colors.md").write_text(table(results, pictures, flags))
    plot(work / "colors.png", results, pictures)


def runs(colors: Iterable[int], seeds: int) -> list[tuple[int, int]]:
    """Lists (colours, seed): every number of colours before a second seed of any."""
    return [(value, seed) for seed in range(seeds) for value in colors]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True, help="input of preprocessing")
    parser.add_argument("--work", type=Path, required=True, help="folder of shards and runs")
    parser.add_argument("--colors", type=int, nargs="+", default=COLORS, help="0 is 24-bit")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--image_size", type=int, default=176, help="stored side in pixels")
    parser.add_argument("--trainer_flags", default="--config=scratch", help="in one argument")
    options = parser.parse_args()
    console = Console()
    flags = options.trainer_flags.split()
    options.work.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for colors, seed in runs(options.colors, options.seeds):
        console.rule(f"{name(colors)} colours, seed {seed}")
        shards = preprocess(options.images, options.work, colors, options.image_size)
        results.append(train(shards, options.work, colors, seed, flags))
        report(options.work, results, count_test_pictures(shards), flags)
    console.print(table(results, count_test_pictures(shards), flags), soft_wrap=True)


if __name__ == "__main__":
    main()
