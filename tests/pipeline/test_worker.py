import os
import signal
import subprocess
import sys

# Stands for Beam's worker, which would take seconds to load and need an engine to talk to.
WORKER = """
import sys, time, types
for name in ("apache_beam", "apache_beam.runners", "apache_beam.runners.worker"):
    sys.modules[name] = types.ModuleType(name)
beam = types.ModuleType("sdk_worker_main")
beam.main = lambda argv: (print("works", flush=True), time.sleep(60))
sys.modules["apache_beam.runners.worker"].sdk_worker_main = beam
from pipeline import worker
worker.main(int(sys.argv[1]))
"""


def start(parent: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, str(parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_worker_works_until_ctrl_c_and_then_leaves_at_once():
    with start(os.getpid()) as worker:
        assert worker.stdout.readline() == "works\n"
        worker.send_signal(signal.SIGINT)
        assert worker.wait(30) == 130


def test_a_worker_leaves_when_its_parent_is_gone():
    with start(parent=2**22 + 1) as worker:  # larger than any process id
        assert worker.wait(30) == 1
