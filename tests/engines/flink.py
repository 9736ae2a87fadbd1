"""A real Flink cluster on loopback: one job manager and several task managers, without Docker.

Flink itself comes from PyPI's `apache-flink-libraries`, and runs on Java 17. Beam's job server for
it is a Maven Central artifact, which `mvn` copies into a cache; `FLINK_JOB_SERVER_JAR` may name a
file instead.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

from tests.engines.processes import Program, free_port, running

FLINK_VERSION = "1.20"
JAVA_VERSION = 17  # Flink 1.20 does not support newer ones
SLOTS = 2  # of each task manager, so that the last one left can hold the whole job
MAVEN_SECONDS = 300

# What Flink's own configuration opens to itself on Java 17.
JAVA_FLAGS = (
    "-Xmx256m",
    "-XX:+UseSerialGC",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.io",
            "java.lang",
            "java.lang.invoke",
            "java.lang.reflect",
            "java.net",
            "java.nio",
            "java.text",
            "java.time",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "java.util.concurrent.locks",
            "sun.net.util",
        )
    ),
)

# A task manager that is not started by Flink's scripts wants every share of its memory spelled out.
TASK_MANAGER_MEMORY = {
    "taskmanager.cpu.cores": f"{SLOTS}.0",
    "taskmanager.memory.framework.heap.size": "64m",
    "taskmanager.memory.framework.off-heap.size": "64m",
    "taskmanager.memory.task.heap.size": "128m",
    "taskmanager.memory.task.off-heap.size": "0",
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.network.min": "32m",
    "taskmanager.memory.network.max": "32m",
    "taskmanager.memory.jvm-metaspace.size": "128m",
    "taskmanager.memory.jvm-overhead.min": "64m",
    "taskmanager.memory.jvm-overhead.max": "64m",
}


class EngineMissingError(RuntimeError):
    """Something that the engine needs cannot be had on this machine; the message tells what."""


@dataclasses.dataclass(frozen=True)
class FlinkCluster:
    """A running cluster.

    Attributes:
        address: `127.0.0.1:port` of its REST interface, the value for `--flink_master`.
        task_managers: in the order they were started.
    """

    address: str
    task_managers: tuple[Program, ...]

    def rest(self, path: str) -> dict:
        """Returns what the REST interface answers to a GET."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
            return json.load(answer)

    def count_task_managers(self) -> int:
        """Returns how many task managers the job manager knows; 0 while it does not answer."""
        try:
            return self.rest("/overview")["taskmanagers"]
        except urllib.error.URLError:
            return 0


def require_flink() -> pathlib.Path:
    """Returns the folder of Flink's jars.

    Raises:
        EngineMissingError: if the jars or Java are not installed.
    """
    spec = importlib.util.find_spec("pyflink")
    installed = [pathlib.Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    folders = [path / "lib" for path in installed if (path / "lib").is_dir()]
    if not folders:
        raise EngineMissingError(
            f"Flink is not installed; pip install 'apache-flink-libraries=={FLINK_VERSION}.*'"
        )
    if shutil.which("java") is None:
        raise EngineMissingError(f"there is no java; Flink needs Java {JAVA_VERSION}")
    banner = subprocess.run(
        ["java", "-version"], capture_output=True, text=True, timeout=60, check=True
    ).stderr
    if f'version "{JAVA_VERSION}.' not in banner:
        raise EngineMissingError(
            f"Flink {FLINK_VERSION} needs Java {JAVA_VERSION}, not {banner.splitlines()[0]}"
        )
    return folders[0]


def require_job_server() -> pathlib.Path:
    """Returns Beam's job server for Flink, fetched with Maven if it is not in the cache.

    Raises:
        EngineMissingError: if it cannot be had.
    """
    if given := os.environ.get("FLINK_JOB_SERVER_JAR"):
        return pathlib.Path(given)
    import apache_beam

    name = f"beam-runners-flink-{FLINK_VERSION}-job-server"
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    folder = cache / "stanford-cars-tpu"
    jar = folder / f"{name}-{apache_beam.__version__}.jar"
    if jar.is_file():
        return jar
    if shutil.which("mvn") is None:
        raise EngineMissingError(
            "there is no mvn to fetch Beam's job server with; "
            "install Maven or set FLINK_JOB_SERVER_JAR to the file"
        )
    artifact = f"org.apache.beam:{name}:{apache_beam.__version__}"
    fetch = subprocess.run(
        [
            "mvn",
            "--batch-mode",
            "--quiet",
            "-Dstyle.color=never",
            "dependency:copy",
            f"-Dartifact={artifact}",
            f"-DoutputDirectory={folder}",
        ],
        capture_output=True,
        text=True,
        timeout=MAVEN_SECONDS,
        check=False,
    )
    if not jar.is_file():
        # Of some sentences on one line, the one that tells of the artifact.
        why = re.search(rf"[^.\n]*{re.escape(artifact.rpartition(':')[0])}[^\n]*", fetch.stdout)
        told = (why[0] if why else fetch.stdout).strip()[:150]
        raise EngineMissingError(
            f"Maven cannot fetch Beam's job server ({told}...); "
            "FLINK_JOB_SERVER_JAR may name the file"
        )
    return jar


@contextlib.contextmanager
def run_flink_cluster(folder: pathlib.Path, task_managers: int = 2) -> Iterator[FlinkCluster]:
    """Runs a cluster until the block ends.

    Args:
        folder: for logs, configuration and temporary files.
        task_managers: how many.

    Raises:
        EngineMissingError: if Flink or Java is not installed.
        EngineStartError: if the cluster does not come up.
    """
    jars = require_flink()
    (folder / "conf").mkdir(parents=True)
    # The scripts would write this file; the settings themselves are given as -D.
    (folder / "conf" / "config.yaml").write_text("jobmanager.rpc.address: 127.0.0.1\n")
    rpc, rest = free_port(), free_port()
    settings = {
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.rpc.port": str(rpc),
        "jobmanager.bind-host": "127.0.0.1",
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": str(rest),
        "taskmanager.host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "taskmanager.numberOfTaskSlots": str(SLOTS),
        "io.tmp.dirs": str(folder),
        "heartbeat.interval": "1000",
        "heartbeat.timeout": "5000",
        "slot.request.timeout": "60000",
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": "3",
        "restart-strategy.fixed-delay.delay": "1 s",
    }

    def java(main: str, extra: dict[str, str]) -> list[str]:
        options = [
            word
            for key, value in {**settings, **extra}.items()
            for word in ("-D", f"{key}={value}")
        ]
        classes = ["-cp", f"{jars}/*", f"org.apache.flink.runtime.{main}"]
        return ["java", *JAVA_FLAGS, *classes, "--configDir", str(folder / "conf"), *options]

    with contextlib.ExitStack() as stack:
        job_manager = stack.enter_context(
            running(
                "job-manager", java("entrypoint.StandaloneSessionClusterEntrypoint", {}), folder
            )
        )
        command = java("taskexecutor.TaskManagerRunner", TASK_MANAGER_MEMORY)
        started = tuple(
            stack.enter_context(running(f"task-manager-{i}", command, folder))
            for i in range(task_managers)
        )
        cluster = FlinkCluster(f"127.0.0.1:{rest}", started)
        job_manager.wait_until(
            lambda: cluster.count_task_managers() == task_managers,
            f"joined by {task_managers} task managers",
        )
        yield cluster
