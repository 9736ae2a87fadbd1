"""A worker process of the local engine: Beam's own, but quiet, and never left alone.

Started by `pipeline.job.local_runner`, not by hand. Beam's plain worker prints its start-up chatter
to the terminal, keeps working for a while after Ctrl-C, and outlives a parent that was killed.
"""

import logging
import os
import signal
import sys
import threading
import time

PARENT_POLL_SECONDS = 0.5


def main(parent: int) -> None:
    """Serves bundles until Beam, Ctrl-C or the end of the process `parent` ends it."""
    # Beam, when imported, warns through the root logger of packages that are not installed;
    # without a handler there, that call sets up one that prints everything from then on.
    logging.getLogger().addHandler(logging.NullHandler())
    # A shard under work has a temporary name, so there is nothing to lose by leaving at once.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    threading.excepthook = tell_late
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


def tell_late(error: threading.ExceptHookArgs) -> None:
    """Prints the error of a thread, unless the process is about to end.

    Beam's threads fail by the dozen as soon as the parent has left.
    """
    time.sleep(2 * PARENT_POLL_SECONDS)
    threading.__excepthook__(error)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
