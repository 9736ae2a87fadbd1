"""The devices of a run, and the road of batches onto them.

Data parallelism only: a batch is split by rows over all devices of all hosts, the state is
replicated. One CPU, eight virtual devices and a slice of many hosts differ in nothing but the list.
"""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AHEAD = 2  # batches on the device before their step


@dataclasses.dataclass(frozen=True)
class Devices:
    """A row of devices, and how arrays lie on them.

    Attributes:
        mesh: one axis, `batch`.
    """

    mesh: Mesh

    @classmethod
    def of(cls, devices: Sequence[jax.Device] | None = None) -> "Devices":
        """Returns the devices given, or else all devices of all hosts."""
        return cls(Mesh(np.array(devices or jax.devices()), ("batch",)))

    def __len__(self) -> int:
        return self.mesh.size

    @property
    def hosts(self) -> int:
        """Number of hosts the devices belong to."""
        return len({device.process_index for device in self.mesh.devices.flat})

    @property
    def replicated(self) -> NamedSharding:
        """The whole array on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_row(self) -> NamedSharding:
        """An equal share of the rows on each device, in order."""
        return NamedSharding(self.mesh, PartitionSpec("batch"))

    def rows_that_fit(self, rows: int) -> int:
        """Returns the least number of rows, at least `rows`, that splits evenly."""
        return -(-rows // len(self)) * len(self)

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits a batch over the devices; each host gives its own rows."""
        return {
            name: jax.make_array_from_process_local_data(self.by_row, array)
            for name, array in batch.items()
        }

    def replicate(self, tree: Any) -> Any:
        """Copies host arrays to every device; the result shares no memory with them.

        A step may consume the result. JAX on a CPU takes over the memory of an aligned NumPy array,
        even with `may_alias=False`, hence a copy of our own.
        """
        return jax.tree.map(lambda leaf: jax.device_put(np.array(leaf), self.replicated), tree)


class Feed:
    """Puts batches on the devices ahead of the steps, and knows how long the devices starved.

    A thread reads, so that reading, copying and computing overlap. A context manager: the thread
    ends with it.
    """

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]], devices: Devices) -> None:
        """Starts to read.

        Args:
            batches: of this host, without end.
            devices: where they go.
        """
        self.waited = 0.0  # seconds in which the devices had nothing to do for want of a batch
        self._batches = batches
        self._devices = devices
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead = collections.deque(self._reader.submit(self._read) for _ in range(_AHEAD))

    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.shutdown(cancel_futures=True)

    def next(self, busy: jax.Array | None = None) -> dict[str, jax.Array]:
        """Returns the next batch.

        Args:
            busy: an output of the last step. While it is not computed the devices do not starve,
                so the clock starts when it is.

        Raises:
            DatasetError: from reading the batch.
        """
        batch = self._ahead.popleft()
        if not batch.done():
            jax.block_until_ready(busy)
            start = time.perf_counter()
            concurrent.futures.wait([batch])
            self.waited += time.perf_counter() - start
        self._ahead.append(self._reader.submit(self._read))
        return batch.result()

    def _read(self) -> dict[str, jax.Array]:
        return self._devices.put_batch(next(self._batches))
