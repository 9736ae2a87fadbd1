"""A trace of a few training steps: where the time of host and devices goes.

TensorBoard's profile plugin opens the folder, and ui.perfetto.dev the `perfetto_trace.json.gz` in
it.
"""

from types import TracebackType

import jax
from etils import epath

_SKIPPED = 5  # steps after the start: the first compiles, the next fill the queues


class Profile:
    """Records some steps of a run. A context manager: what is recorded when it ends is written."""

    def __init__(self, folder: epath.Path, steps: int, start: int, total_steps: int) -> None:
        """Plans which steps to record.

        Args:
            folder: where the trace goes.
            steps: how many; 0 for none.
            start: steps done already.
            total_steps: of the run. A short one is recorded to its end.
        """
        first = start + 1 + max(min(_SKIPPED, total_steps - start - steps), 0)
        self._folder = folder
        self._turns = (first, first + steps) if steps else ()
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running:
            self.turn()

    def due(self, number: int) -> bool:
        """Whether to `turn` before the step of this number, when all before it are computed."""
        return number in self._turns

    def turn(self) -> None:
        """Starts to record, or writes what was recorded."""
        if self._running:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
        self._running = not self._running
