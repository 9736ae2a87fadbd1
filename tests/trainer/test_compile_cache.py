"""Compiled programs are found again by the next process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import TRAIN_FLAGS
from trainer import compile_cache


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python in an environment in which nobody has chosen a cache."""
    chosen = {k: v for k, v in os.environ.items() if k != compile_cache.VARIABLE}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**chosen, "XLA_FLAGS": "--xla_backend_optimization_level=0", **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


def steps_found(data: Path, model_dir: Path, home: Path) -> set[str]:
    """Trains for an epoch; returns the steps whose programs came from the cache."""
    command = ["-m", "trainer", "train", f"--data_dir={data}", f"--model_dir={model_dir}"]
    log = python(
        *command,
        *TRAIN_FLAGS,
        "--epochs=1",
        XDG_CACHE_HOME=str(home),
        JAX_DEBUG_LOG_MODULES="jax._src.compiler",
    ).stderr
    return set(re.findall(r"cache hit for 'jit_(train_step|eval_step)'", log))


def test_a_second_start_compiles_no_step(small_data, tmp_path):
    assert steps_found(small_data, tmp_path / "a", tmp_path / "home") == set()
    assert list((tmp_path / "home/stanford-cars-tpu/jax").iterdir())
    assert steps_found(small_data, tmp_path / "b", tmp_path / "home") == {"train_step", "eval_step"}


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"XDG_CACHE_HOME": "/c"}, "/c/stanford-cars-tpu/jax"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/stanford-cars-tpu/jax"),
        ({"XDG_CACHE_HOME": "/c", compile_cache.VARIABLE: "/mine"}, "/mine"),
        ({"XDG_CACHE_HOME": "/c", compile_cache.VARIABLE: ""}, ""),  # off
    ],
)
def test_the_folder_is_the_users_cache_or_what_the_variable_says(environment, folder):
    code = (
        "import jax; from trainer import compile_cache; compile_cache.enable(); "
        "print(jax.config.jax_compilation_cache_dir)"
    )
    assert python("-c", code, **environment).stdout.strip() == folder
