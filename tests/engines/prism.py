"""Prism, Beam's portable engine written in Go, as a server on loopback."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from tests.engines.processes import free_port, listens, running


def find_prism() -> str | None:
    """Returns the binary: `PRISM`, or in PATH, or where `go install` puts it; None without one."""
    if given := os.environ.get("PRISM"):
        return given
    go = pathlib.Path(os.environ.get("GOPATH", pathlib.Path.home() / "go"))
    return shutil.which("prism") or shutil.which("prism", path=go / "bin")


@contextlib.contextmanager
def run_prism(binary: str, folder: pathlib.Path) -> Iterator[list[str]]:
    """Runs the server until the block ends.

    Yields:
        The Beam options that send a job to it.
    """
    port = free_port()
    command = [binary, f"-job_port={port}", "-serve_http=false", "-log_kind=text"]
    with running("prism", command, folder) as server:
        server.wait_until(lambda: listens(port), "listening")
        yield ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}"]
