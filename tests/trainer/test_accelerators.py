"""Which accelerator a JAX device kind is."""

import fnmatch

import pytest

from trainer import accelerators


@pytest.mark.parametrize(
    ("kind", "name", "flops", "memory"),
    [
        ("TPU v2", "TPU v2", 23e12, 8),  # two devices a chip
        ("TPU v3", "TPU v3", 61.5e12, 16),
        ("TPU v4", "TPU v4", 275e12, 32),
        ("TPU v5 lite", "TPU v5e", 197e12, 16),  # begins like "TPU v5"
        ("TPU v5", "TPU v5p", 459e12, 95),  # as the compiler says
        ("TPU v5p", "TPU v5p", 459e12, 95),
        ("TPU v6 lite", "TPU v6e", 918e12, 32),
        ("TPU7x", "TPU7x", 1153.5e12, 96),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB", 312e12, 40),
        ("NVIDIA H100 80GB HBM3", "H100", 989.4e12, 80),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756e12, 80),
        ("NVIDIA H200", "H200", 989.4e12, 141),
        ("NVIDIA H200 NVL", "H200 NVL", 835.5e12, 141),
    ],
)
def test_a_device_has_its_share_of_the_chip(kind, name, flops, memory):
    found = accelerators.of(kind)
    assert (found.name, found.device_flops, found.device_memory) == (name, flops, memory)


@pytest.mark.parametrize("kind", ["cpu", "", "NVIDIA GeForce RTX 4090", "TPU v9"])
def test_no_peak_is_better_than_a_wrong_one(kind):
    assert accelerators.of(kind) is None


@pytest.mark.parametrize(
    ("files", "platforms", "wanted"),
    [
        ([], None, False),
        (["/dev/accel0"], None, True),  # TPU v2 to v4
        (["/dev/vfio/0"], None, True),  # later ones
        (["/dev/accel0"], "", True),  # means unset
        (["/dev/accel0"], "tpu,cpu", True),
        (["/dev/accel0"], "cpu", False),
    ],
)
def test_a_tpu_is_wanted_where_there_is_one_and_nobody_said_otherwise(
    files, platforms, wanted, monkeypatch
):
    monkeypatch.setattr(accelerators.glob, "glob", lambda pattern: fnmatch.filter(files, pattern))
    if platforms is None:
        monkeypatch.delenv("JAX_PLATFORMS")
    else:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert accelerators.tpu_wanted() is wanted
