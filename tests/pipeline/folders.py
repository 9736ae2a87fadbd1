"""Small folders of car pictures for the tests: class folders, drawn at random in milliseconds."""

import io
import pathlib

import numpy as np
from PIL import Image

from pipeline import layouts, plan
from pipeline.config import JobOptions, PictureOptions
from pipeline.plan import Plan

CLASSES = ("Alpha One Sedan 2001", "Beta Two Coupe 2002", "Gamma Three Van 2003")


def jpeg(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """Returns a JPEG of smooth random colours; `size` is (width, height)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


def draw(root: pathlib.Path, train: int = 12, test: int = 5) -> str:
    """Writes `train` and `test` pictures in turn over the classes; returns the data folder."""
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            folder = root / split / CLASSES[i % len(CLASSES)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:05d}.jpg").write_bytes(jpeg(seed=hash_seed(split, i)))
    return str(root)


def hash_seed(split: str, i: int) -> int:
    return i + 1000 * (split == "test")


def claimed(
    data_dir: str,
    output_dir: str,
    picture: PictureOptions | None = None,
    examples_per_shard: int = 4,
    overwrite: bool = False,
) -> Plan:
    """Lists a folder and claims the output folder for it, as `preprocess` does before its job."""
    listing = layouts.find(data_dir)
    options = JobOptions(
        data_dir, output_dir, examples_per_shard=examples_per_shard, overwrite=overwrite
    )
    made = plan.make(listing, picture or PictureOptions(image_size=16), examples_per_shard)
    plan.claim(options, made, listing)
    return made
