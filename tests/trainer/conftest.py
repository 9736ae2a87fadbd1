"""Eight virtual devices for every test of the trainer, and programs that compile in half the time.

XLA reads the flags when its CPU client starts, which is after this file is imported: nothing in the
pipeline's tests touches JAX.
"""

import os
from pathlib import Path

import pytest

import trainer  # noqa: F401 (chooses Keras's engine before a test module imports Keras)
from tests.trainer import shards

DEVICE_FLAG = "--xla_force_host_platform_device_count=8"
QUICK_FLAG = "--xla_backend_optimization_level=0"

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICE_FLAG} {QUICK_FLAG}".strip()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 training and 21 test pictures of 16×16, in 5 classes. Not to be written to."""
    folder = tmp_path_factory.mktemp("small_data")
    shards.write(folder, {"train": 48, "test": 21}, image_size=16, colors=8)
    return folder
