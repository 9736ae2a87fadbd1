"""The steps compiled for slices of TPU by the command that a person would type.

Each compilation is a process, because JAX reads what it needs when it is imported.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.trainer import shards
from trainer import accelerators, data, flops, metadata, models, step, tpu_check
from trainer.__main__ import named_config
from trainer.tpu_check import Pictures

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed; `make test-tpu` does it",
)
DEMO = ("--config=demo", "--image_size=64", "--classes=10")


def check_tpu(*flags: str) -> subprocess.CompletedProcess:
    """Runs `python -m trainer check-tpu`, without what conftest.py tells JAX."""
    told = ("XLA_FLAGS", "JAX_")
    return subprocess.run(
        [sys.executable, "-m", "trainer", "check-tpu", *flags],
        env={k: v for k, v in os.environ.items() if not k.startswith(told)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def numbers(tmp_path: Path, *flags: str) -> dict:
    run = check_tpu(*flags, f"--json={tmp_path / 'check.json'}")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads((tmp_path / "check.json").read_text())


# The first is compared with the second.
@needs_compiler
@pytest.mark.parametrize(
    ("topology", "hosts", "devices"),
    [
        ("v5e:1x1", 1, 1),
        ("v5e:2x4", 1, 8),
        ("v5e:2x4", 2, 8),
        ("v4:2x2x1", 1, 4),  # one device a chip, not two
        ("v6e:2x4", 2, 8),
    ],
)
def test_the_demo_compiles(topology, hosts, devices, tmp_path):
    flags = (f"--topology={topology}", f"--hosts={hosts}", "--shares=false")
    found = numbers(tmp_path, *DEMO, *flags)
    batch = named_config("demo").run.batch_size
    model = models.build(named_config("demo").model, classes=10)
    kernels = sum(v.size for v in models.weights(model).values() if v.ndim == 4)
    arithmetic = flops.forward(model, 64) * batch / devices
    # The compiler leaves out what is multiplied with padding, and counts what is no product.
    assert 0.8 < found["train"]["flops"] / (flops.TRAIN_PASSES * arithmetic) < 1.5
    # Evaluation sees each picture and its mirror image.
    assert 0.8 < found["evaluation"]["flops"] / (2 * arithmetic) < 1.5
    reduced = found["train"]["all_reduce_bytes"]
    if devices == 1:
        assert reduced == {}
    else:
        # Gradients of convolutions in bfloat16; those of the rest, and statistics, in float32.
        assert reduced["bf16"] == 2 * kernels
        assert 4 * (model.count_params() - kernels) < reduced["f32"] < 0.1 * reduced["bf16"]
    # Weights and velocity, four bytes each, and little else at this size.
    assert 8 * kernels < found["train"]["peak_memory"] < 40 * kernels
    assert found["train"]["cycles"] > 2 * found["evaluation"]["cycles"] > 0


@needs_compiler
def test_shares_of_a_step(tmp_path):
    flags = ("--topology=v5e:1x1", "--hosts=1", "--width=6")
    found = numbers(tmp_path, *DEMO, *flags)
    assert 0 < found["shares"]["expansion"] < 0.5
    assert 0 < found["shares"]["augmentation"] < 0.7


@needs_compiler
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--topology=v9:2x4"], "no chip 'v9'; there are v2, v3, v4, v5e, v5p, v6e, tpu7x"),
        (["--topology=v5e:3x3", "--hosts=2"], "--hosts=2 cannot share the 9 chips"),
        (["--topology=v5e:3x5"], "the TPU compiler has no such slice"),
        (
            ["--topology=v5e:2x4", "--batch_size=20", "--data_streams=4"],
            "over 8 devices; the nearest batch sizes that fit: 16 and 24",
        ),
        (
            ["--topology=v5e:2x4", "--hosts=8", "--data_streams=4"],
            "--data_streams=4 cannot be split over 8 hosts; use a multiple of 8",
        ),
        (["--topology=v5e:2x4", "--data_dir=/nowhere"], "--data_dir says what --image_size is"),
    ],
)
def test_mistakes_are_told_in_a_line_or_two(flags, said):
    run = check_tpu(*DEMO, *flags)
    assert run.returncode == 2
    assert said in run.stderr
    assert len(run.stderr.splitlines()) <= 2


@needs_compiler
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does():
    # Far too many pictures are refused before much is compiled.
    run = check_tpu(*DEMO, "--topology=v5e:1x1", "--batch_size=131072")
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    needed, fitting = re.search(
        r"\(131072 a device\) needs ([\d.]+) GiB of the 15\.75 GiB that a program may use "
        r"of TPU v5e; about (\d+) would fit",
        run.stderr,
    ).groups()
    assert float(needed) > 15.75
    assert int(fitting) == int(131072 * 15.75 / float(needed)) // 8 * 8


@pytest.mark.parametrize("encoding", ["indexed", "packed", "rgb"])
def test_batches_are_those_that_training_gets(encoding, tmp_path):
    colors = 0 if encoding == "rgb" else 8
    shards.write(tmp_path, {"train": 16}, encoding=encoding, image_size=16, colors=colors)
    info = metadata.read(tmp_path)
    batch = next(data.train_batches(info, "train", global_batch=8, seed=0, data_streams=1))
    pictures = Pictures.of(str(tmp_path))
    assert pictures.count == 16
    assert {name: (spec.shape, spec.dtype) for name, spec in pictures.batch(8).items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }


def test_without_augmentation_the_network_gets_the_stored_pixels():
    recipe = dataclasses.replace(tpu_check.NO_AUGMENTATION, train_crop=16)
    options = step.augment_options(recipe.at(16))
    assert not options.mixes
    batch = {"image": np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)}
    keys = jax.random.split(jax.random.key(0), 2)
    seen = step.augment.train_pictures(batch, options, keys)
    np.testing.assert_array_equal(seen, (batch["image"] - 128.0) / 128)


@pytest.mark.parametrize(
    ("needed", "rows", "asked"),
    [
        (lambda rows: 1000 + 125 * rows, 112, [40, 112]),
        # Padding makes the last a little larger than the line says.
        (lambda rows: 1000 + 125 * rows + (100 if rows > 100 else 0), 104, [40, 112, 104]),
        # The second does not fit already.
        (lambda rows: 125 * rows + max(0, rows - 24) ** 2 * 10, 48, [56, 48]),
        # Nothing larger fits.
        (lambda rows: 14000 * rows // 16, 16, [32]),
    ],
)
def test_the_search_for_the_largest_batch(needed, rows, asked):
    measured = []

    def measure(size):
        measured.append(size)
        return needed(size)

    found = tpu_check.largest_fitting((16, needed(16)), 15000, 8, measure)
    assert found == (rows, needed(rows))
    assert measured == asked


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        # Both ways in which libtpu 0.0.42 says it.
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (24.34G) exceeds available HBM (15.75G).",
            24.34,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.70G of 15.75G hbm. "
            "Exceeded hbm capacity by 4.95G.",
            20.7,
        ),
    ],
)
def test_a_lack_of_memory_is_understood(message, needed):
    error = tpu_check._translated(jax.errors.JaxRuntimeError(message))
    assert error.needed == round(needed * 2**30)


def test_another_refusal_stays_what_it_is():
    error = jax.errors.JaxRuntimeError("INTERNAL: something else (1.0G)")
    assert tpu_check._translated(error) is error


@pytest.mark.parametrize("chip", accelerators.TPUS)
@needs_compiler
def test_the_compiler_knows_every_chip_as_we_do(chip):
    code = (
        "from trainer import topologies, accelerators; import sys; "
        "s = topologies.describe(sys.argv[1]); d = s.devices[0]; "
        "assert accelerators.of(d.device_kind) is s.accelerator, d.device_kind; "
        "assert len(s.devices) == 4 * s.accelerator.chip_devices; "
        "share = s.memory / 2**30 / s.accelerator.device_memory; assert 0.9 < share < 1.01, share"
    )
    shape = "2x2" if chip in ("v2", "v3", "v5e", "v6e") else "2x2x1"
    subprocess.run([sys.executable, "-c", code, f"{chip}:{shape}"], check=True)
