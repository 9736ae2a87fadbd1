"""Checkpoints: what comes back is what was saved, or an error names the folder that is wrong."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from trainer.checkpoints import Checkpoints, RunRecord, checksums
from trainer.config import RunConfig, TrainConfig
from trainer.devices import Devices
from trainer.errors import CheckpointError

RUN = RunRecord(
    config=TrainConfig(run=RunConfig(seed=3)),
    class_names=("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"),
    image_size=16,
    colors=8,
    data_fingerprint="00ff",
    preprocessing={"options": {"colors": 8}},
    total_steps=10,
    device_kind="cpu",
    versions={"jax": "0"},
)


@pytest.fixture(scope="module")
def devices() -> Devices:
    return Devices.of()


def state(devices: Devices, step: int, seed: int = 0, width: int = 4):
    rng = np.random.default_rng(seed)
    return devices.replicate(
        {
            "step": np.int32(step),
            "weights": {
                "conv.kernel": rng.normal(size=(3, 3, 2, width)).astype(np.float32),
                "conv.bias": np.zeros(width, np.float32),
            },
        }
    )


@pytest.fixture
def folder(tmp_path: Path, devices: Devices) -> Path:
    """Two checkpoints, of steps 5 and 7."""
    with Checkpoints(tmp_path, keep=2) as saved:
        for step in (5, 7):
            saved.save(step, state(devices, step, seed=step), RUN)
    return tmp_path


def test_arrays_and_record_come_back(folder, devices):
    with Checkpoints(folder) as saved:
        assert saved.latest_step() == 7
        assert saved.read_run(7) == RUN
        restored = saved.restore(7, state(devices, 0))
    expected = state(devices, 7, seed=7)
    assert checksums(restored) == checksums(expected)
    assert jax.tree.all(jax.tree.map(lambda x: x.sharding == devices.replicated, restored))


def test_arrays_come_back_onto_other_devices(folder):
    three = Devices.of(jax.devices()[:3])
    with Checkpoints(folder) as saved:
        restored = saved.restore(5, state(three, 0))
    assert restored["weights"]["conv.bias"].sharding == three.replicated
    assert checksums(restored) == checksums(state(three, 5, seed=5))


def test_only_the_latest_stay(tmp_path, devices):
    with Checkpoints(tmp_path, keep=2) as saved:
        for step in (1, 2, 3, 4):
            saved.save(step, state(devices, step), RUN)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["3", "4"]


def test_a_partial_checkpoint_is_not_seen(folder, devices):
    """As a process leaves it that is killed while it writes."""
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(folder) as saved:
        assert saved.latest_step() == 7


def test_a_change_of_the_state_after_saving_does_not_reach_the_file(tmp_path, devices):
    """The train step reuses the memory of a state while it is being written."""
    before = state(devices, 1)
    expected = checksums(before)
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as saved:
        saved.save(1, before, RUN)
        add(before)
    with Checkpoints(tmp_path) as saved:
        assert checksums(saved.restore(1, state(devices, 0))) == expected


def test_another_architecture_is_refused_with_both_sides_named(folder, devices):
    with (
        Checkpoints(folder) as saved,
        pytest.raises(
            CheckpointError,
            match=r"2 arrays differ, the first is weights\.conv\.bias: \[4\] / \[6\]",
        ),
    ):
        saved.restore(7, state(devices, 0, width=6))


def test_an_array_that_is_not_what_was_saved_is_found(folder, devices):
    path = folder / "7/run/metadata"
    record = json.loads(path.read_text())
    record["sha256"]["weights.conv.bias"] = "0" * 64
    path.write_text(json.dumps(record))
    with (
        Checkpoints(folder) as saved,
        pytest.raises(CheckpointError, match=r"/7: .* damaged \(weights\.conv\.bias is not what"),
    ):
        saved.restore(7, state(devices, 0))


def test_a_checkpoint_under_another_step_is_found(folder, devices):
    (folder / "7").rename(folder / "8")
    with (
        Checkpoints(folder) as saved,
        pytest.raises(CheckpointError, match="its arrays are of step 7"),
    ):
        saved.restore(8, state(devices, 0))


@pytest.mark.parametrize("part", ["state", "run"])
def test_a_checkpoint_that_lost_a_part_is_refused_and_the_folder_named(folder, devices, part):
    for path in (folder / "7" / part).rglob("*"):
        if path.is_file():
            path.unlink()
    with (
        Checkpoints(folder) as saved,
        pytest.raises(CheckpointError, match="/7: the checkpoint is damaged .* delete this folder"),
    ):
        saved.restore(7, state(devices, 0))


def test_a_flipped_byte_of_the_arrays_is_found(folder, devices):
    """Whichever notices it first: the storage layer's checksum, or that of the array."""
    files = [path for path in (folder / "7/state").glob("d/*") if path.is_file()]
    data = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0x10
    data.write_bytes(content)
    with Checkpoints(folder) as saved, pytest.raises(CheckpointError, match="/7: .* damaged"):
        saved.restore(7, state(devices, 0))


def test_the_record_survives_json():
    assert RunRecord.from_json(json.loads(json.dumps(RUN.to_json()))) == RUN
