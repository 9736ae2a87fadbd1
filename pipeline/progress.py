"""How far a job is, read from the files that its workers leave, wherever they run."""

import contextlib
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import storage, tally
from pipeline.plan import Plan
from pipeline.shards import SIDECAR_FOLDER, read_sidecar

POLL_SECONDS = 0.5
REMOTE_POLL_SECONDS = 10.0
LINE_SECONDS = 10.0  # between two lines of a log


class _Watch:
    """Counts the pictures of one plan: in its sidecars, each read once, and in shards under work.

    Attributes:
        done: pictures written or rejected.
        rejects: pictures rejected.
        resumed: what `done` was at first: the work of earlier runs.
    """

    def __init__(self, output_dir: str, plan: Plan) -> None:
        self._output_dir, self._plan = output_dir, plan
        self._waiting = {shard.file_name: shard for shard in plan.all_shards()}
        self._finished = self._rejected = 0
        self._look_seconds = 0.0
        self.done = self.rejects = 0
        self.update()
        self.resumed = self._finished

    @property
    def poll_seconds(self) -> float:
        """How long to wait until the next look; looking takes a twentieth of the time at most."""
        local = storage.is_local(self._output_dir)
        return max(POLL_SECONDS if local else REMOTE_POLL_SECONDS, 20 * self._look_seconds)

    def update(self) -> None:
        start = time.monotonic()
        with contextlib.suppress(OSError):  # a look that failed is made up for by the next
            self._look()
        self._look_seconds = time.monotonic() - start

    def _look(self) -> None:
        files = storage.list_folder(storage.join(self._output_dir, SIDECAR_FOLDER))
        under_work = tally.read(self._output_dir, files)
        for name in [name for name in self._waiting if f"{name}.json" in files]:
            sidecar = read_sidecar(self._output_dir, self._waiting[name])
            if sidecar is not None and sidecar.fingerprint == self._plan.fingerprint:
                del self._waiting[name]
                self._finished += sidecar.records + len(sidecar.rejects)
                self._rejected += len(sidecar.rejects)
        counts = [count for name, count in under_work.items() if name in self._waiting]
        self.done = self._finished + sum(done for done, _ in counts)
        self.rejects = self._rejected + sum(rejects for _, rejects in counts)


@contextlib.contextmanager
def progress(output_dir: str, plan: Plan, console: Console) -> Iterator[int]:
    """Shows the progress of a running job: a live bar in a terminal, plain lines in a log.

    Yields:
        The number of pictures that earlier runs have done.
    """
    stop = threading.Event()
    watch = _Watch(output_dir, plan)
    show = _show_bar if console.is_terminal else _show_lines
    thread = threading.Thread(target=show, args=(watch, plan.found, console, stop), daemon=True)
    thread.start()
    try:
        yield watch.resumed
    finally:
        stop.set()
        thread.join()


def _show_bar(watch: _Watch, total: int, console: Console, stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rejects]:,} rejected"),
    )
    with Progress(*columns, console=console) as bar:
        start = time.monotonic()
        task = bar.add_task("pictures", total=total, completed=watch.resumed, rejects=0, rate="")
        ended = False
        while not ended:
            ended = stop.wait(watch.poll_seconds)
            watch.update()
            rate = (watch.done - watch.resumed) / (time.monotonic() - start)
            told = f"{rate:,.0f}/s" if rate else ""
            bar.update(task, completed=watch.done, rejects=watch.rejects, rate=told)


def _show_lines(watch: _Watch, total: int, console: Console, stop: threading.Event) -> None:
    start = time.monotonic()
    while not stop.wait(max(LINE_SECONDS, watch.poll_seconds)):
        watch.update()
        rate = (watch.done - watch.resumed) / (time.monotonic() - start)
        left = f", {(total - watch.done) / rate:,.0f} s left" if rate else ""
        console.print(
            f"{watch.done:,} of {total:,} pictures, {rate:,.0f}/s{left}, "
            f"{watch.rejects:,} rejected",
            soft_wrap=True,
            highlight=False,
        )
