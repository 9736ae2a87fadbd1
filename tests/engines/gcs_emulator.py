"""Google Cloud Storage on loopback, for jobs that run in processes of their own.

The storage itself is PyPI's `gcp-storage-emulator`. Its own server answers one request at a time,
so latency would add up instead of overlapping; here every request has a thread, reads can be given
a delay, requests are logged, and a token endpoint accepts a throw-away service-account key.
Without a key each process that touches gs:// looks for credentials for about 21 seconds.
"""

import argparse
import contextlib
import dataclasses
import functools
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

START_SECONDS = 30
STOP_SECONDS = 10
BUCKET = "cars"


@dataclasses.dataclass(frozen=True)
class GcsEmulator:
    """A running emulator with one empty bucket, `BUCKET`.

    Attributes:
        endpoint: `http://127.0.0.1:port`.
        environment: what a process needs in its environment to use it.
        log: file with a line of JSON for each request: method, path.
    """

    endpoint: str
    environment: dict[str, str]
    log: pathlib.Path

    def requests(self) -> list[tuple[str, str]]:
        """Returns method and path, with the query, of every request answered so far."""
        rows = (json.loads(line) for line in self.log.read_text().splitlines())
        return [(row["method"], row["path"]) for row in rows]

    def _bucket(self):
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client(
            project="offline",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": self.endpoint},
        )
        return client.bucket(BUCKET)

    def upload(self, folder: pathlib.Path, prefix: str) -> str:
        """Copies a local folder into the bucket and returns its gs:// name."""
        bucket = self._bucket()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder).as_posix()}"
                bucket.blob(name).upload_from_filename(str(path))
        return f"gs://{BUCKET}/{prefix}"

    def read(self, prefix: str) -> dict[str, bytes]:
        """Returns the content of every object below a prefix, by the rest of its name."""
        return {
            blob.name[len(prefix) + 1 :]: blob.download_as_bytes()
            for blob in self._bucket().list_blobs(prefix=prefix + "/")
        }

    def delete(self, name: str) -> None:
        """Removes one object."""
        self._bucket().blob(name).delete()


@contextlib.contextmanager
def run_gcs_emulator(
    folder: pathlib.Path, read_delay_seconds: float = 0.0
) -> Iterator[GcsEmulator]:
    """Runs an emulator in a process of its own until the block ends.

    Args:
        folder: where the key and the logs go.
        read_delay_seconds: added to each download, as a distant bucket would.

    Yields:
        The emulator, answering.

    Raises:
        RuntimeError: if it does not start within `START_SECONDS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, errors = folder / "requests.jsonl", folder / "emulator.log"
    log.touch()
    command = [sys.executable, __file__, f"--log={log}", f"--read_delay={read_delay_seconds}"]
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            watchdog = threading.Timer(START_SECONDS, process.kill)
            watchdog.start()
            port = process.stdout.readline().strip()
            watchdog.cancel()
            if not port:
                raise RuntimeError(f"the storage emulator did not start: {errors.read_text()}")
            endpoint = f"http://127.0.0.1:{port}"
            key = folder / "key.json"
            key.write_text(json.dumps(service_account_key(endpoint + "/token")))
            yield GcsEmulator(
                endpoint,
                {
                    "STORAGE_EMULATOR_HOST": endpoint,
                    "GOOGLE_APPLICATION_CREDENTIALS": str(key),
                    "GOOGLE_CLOUD_PROJECT": "offline",
                    "NO_GCE_CHECK": "true",
                },
                log,
            )
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def service_account_key(token_uri: str) -> dict[str, str]:
    """Returns a key file's content for an account that exists nowhere."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "project_id": "offline",
        "private_key_id": "0",
        "private_key": pem.decode(),
        "client_email": "nobody@offline.iam.gserviceaccount.com",
        "client_id": "0",
        "token_uri": token_uri,
    }


def _serve(log: pathlib.Path, read_delay_seconds: float) -> None:
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    # Renames and deletes go through soft deletion otherwise, which keeps every byte ever written.
    storage.buckets[BUCKET]["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
    lock = threading.Lock()  # the storage was not written for threads

    class Handler(RequestHandler):
        def _answer(self, do) -> None:
            if "alt=media" in self.path and self.command == "GET":
                time.sleep(read_delay_seconds)
            with lock:
                do()
                with log.open("a") as lines:
                    lines.write(json.dumps({"method": self.command, "path": self.path}) + "\n")

        def do_GET(self) -> None:
            self._answer(super().do_GET)

        def do_POST(self) -> None:
            if self.path == "/token":
                self._answer(self._grant)
            else:
                self._answer(super().do_POST)

        def do_PUT(self) -> None:
            self._answer(super().do_PUT)

        def do_PATCH(self) -> None:
            self._answer(super().do_PATCH)

        def do_DELETE(self) -> None:
            self._answer(super().do_DELETE)

        def _grant(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps(
                {"access_token": "offline", "expires_in": 3600, "token_type": "Bearer"}
            ).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, storage))
    print(server.server_port, flush=True)
    parent = os.getppid()

    def stop_with_parent() -> None:  # a killed test run leaves no server behind
        while os.getppid() == parent:
            time.sleep(1)
        server.shutdown()

    threading.Thread(target=stop_with_parent, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=pathlib.Path, required=True)
    parser.add_argument("--read_delay", type=float, default=0.0, help="seconds")
    arguments = parser.parse_args()
    _serve(arguments.log, arguments.read_delay)
