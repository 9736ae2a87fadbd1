"""What accelerators can do at most: arithmetic per second, and memory.

TPU: the pages of each version at cloud.google.com/tpu/docs, peak compute (bf16) and HBM capacity
per chip; v2 from Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural
networks". GPU: NVIDIA's data sheets, dense bfloat16 (the headline figures with sparsity, halved).
"""

import dataclasses
import glob
import os


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A chip, or a GPU.

    Attributes:
        name: as its maker calls it.
        kind: how JAX's `device_kind` begins.
        chip_flops: peak of a chip in bfloat16, FLOP/s.
        chip_memory: of a chip, in GiB.
        chip_devices: JAX devices a chip; each has its share of both.
    """

    name: str
    kind: str
    chip_flops: float
    chip_memory: float
    chip_devices: int = 1

    @property
    def device_flops(self) -> float:
        """Peak of a JAX device in bfloat16, FLOP/s."""
        return self.chip_flops / self.chip_devices

    @property
    def device_memory(self) -> float:
        """Memory of a JAX device, in GiB."""
        return self.chip_memory / self.chip_devices


TPUS = {
    "v2": Accelerator("TPU v2", "TPU v2", 46e12, 16, chip_devices=2),
    "v3": Accelerator("TPU v3", "TPU v3", 123e12, 32, chip_devices=2),
    "v4": Accelerator("TPU v4", "TPU v4", 275e12, 32),
    "v5e": Accelerator("TPU v5e", "TPU v5 lite", 197e12, 16),
    "v5p": Accelerator("TPU v5p", "TPU v5", 459e12, 95),
    "v6e": Accelerator("TPU v6e", "TPU v6 lite", 918e12, 32),
    "tpu7x": Accelerator("TPU7x", "TPU7x", 2307e12, 192, chip_devices=2),
}
"""By the name that the compiler gives their slices."""

_GPUS = (
    Accelerator("A100 40 GB", "NVIDIA A100-SXM4-40GB", 312e12, 40),
    Accelerator("A100 40 GB PCIe", "NVIDIA A100-PCIE-40GB", 312e12, 40),
    Accelerator("A100 80 GB", "NVIDIA A100-SXM4-80GB", 312e12, 80),
    Accelerator("A100 80 GB PCIe", "NVIDIA A100 80GB PCIe", 312e12, 80),
    Accelerator("H100", "NVIDIA H100 80GB HBM3", 989.4e12, 80),
    Accelerator("H100 PCIe", "NVIDIA H100 PCIe", 756e12, 80),
    Accelerator("H100 NVL", "NVIDIA H100 NVL", 835e12, 94),
    Accelerator("H200", "NVIDIA H200", 989.4e12, 141),
    Accelerator("H200 NVL", "NVIDIA H200 NVL", 835.5e12, 141),
)

NO_TPU_HERE = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
"""Environment for libtpu where there is no TPU: what it would ask a TPU VM's metadata server.

Without an answer it complains on stderr. JAX loads it wherever it is installed.
"""


def of(device_kind: str) -> Accelerator | None:
    """Returns the accelerator of a JAX device kind, or None for one that is not listed here.

    Args:
        device_kind: of a device. The longest beginning decides: "TPU v5 lite" is not "TPU v5".
    """
    fitting = [a for a in (*TPUS.values(), *_GPUS) if device_kind.startswith(a.kind)]
    return max(fitting, key=lambda accelerator: len(accelerator.kind), default=None)


def tpu_wanted() -> bool:
    """Whether this machine has a TPU that JAX may use; libtpu need not be installed."""
    # TPU v2 to v4, and later ones.
    present = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(present) and "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu")
