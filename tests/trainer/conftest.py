"""Eight virtual devices for every test of the trainer; programs compiled once, and quickly.

XLA reads the flags when its CPU client starts, which is after this file is imported: nothing in the
pipeline's tests touches JAX.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

import trainer  # noqa: F401 (chooses Keras's engine before a test module imports Keras)
from tests.trainer import shards

# Trainers that tests start as processes inherit these.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# Where libtpu is installed (for check-tpu), JAX would look for a TPU in each of them.
os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax_cache_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# JAX read its environment when it was imported.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# A run of 20 epochs of 3 steps.
TRAIN_FLAGS = (
    "--model=small",
    "--width=6",
    "--train_crop=16",
    "--epochs=20",
    "--batch_size=16",
    "--ema=0.9",
    "--checkpoint_every=5",
    "--evaluate_every=10",
    "--log_every=10",
)
TOTAL_STEPS = 60


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 training and 23 test pictures of 16×16, in 6 classes. Not to be written to."""
    folder = tmp_path_factory.mktemp("small_data")
    shards.write(folder, {"train": 48, "test": 23}, image_size=16, colors=8, num_classes=6)
    return folder


@pytest.fixture(scope="session")
def trained(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run of `TRAIN_FLAGS` that nothing disturbed. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    assert train_here(small_data, folder) == 0
    return folder


def train_here(data: Path, model_dir: Path, *flags: str) -> int:
    """Runs `python -m trainer train` with `TRAIN_FLAGS` in this process, on one device.

    Eight devices that share two busy cores would take seconds a step.

    Returns:
        The exit code.
    """
    from trainer.__main__ import main

    device = jax.devices()[0]
    arguments = ["train", f"--data_dir={data}", f"--model_dir={model_dir}", *TRAIN_FLAGS, *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: [device])
        return main(arguments)
