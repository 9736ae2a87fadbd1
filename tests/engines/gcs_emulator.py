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
import io
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
        log: file of JSON lines: requests and created objects, each with its Unix time in seconds.
    """

    endpoint: str
    environment: dict[str, str]
    log: pathlib.Path

    def requests(self) -> list[tuple[str, str]]:
        """Returns method and path, with the query, of every request so far."""
        return [(row["method"], row["path"]) for row in self._rows() if "method" in row]

    def created(self) -> list[str]:
        """Returns the names of the objects written so far, in the order they became visible."""
        return [row["created"] for row in self._rows() if "created" in row]

    def _rows(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def process_environment(self) -> dict[str, str]:
        """Returns this process's environment with `environment` on top."""
        return {**os.environ, **self.environment}

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

    def read_object(self, name: str) -> bytes:
        """Returns the content of one object."""
        return self._bucket().blob(name).download_as_bytes()

    def write_object(self, name: str, data: bytes) -> None:
        """Writes one object."""
        self._bucket().blob(name).upload_from_string(data)

    def delete(self, *names: str) -> None:
        """Removes objects."""
        self._bucket().delete_blobs(list(names))


@contextlib.contextmanager
def run_gcs_emulator(
    folder: pathlib.Path, read_delay_seconds: float = 0.0
) -> Iterator[GcsEmulator]:
    """Runs an emulator in a process of its own until the block ends.

    Args:
        folder: where the key and the logs go.
        read_delay_seconds: added to each request that reads, as a distant bucket would.

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
                    # google-auth asks iamcredentials.googleapis.com about every account, in the
                    # background. A proxy that is not there keeps that on this machine.
                    "HTTPS_PROXY": "http://127.0.0.1:1",
                    "NO_PROXY": "127.0.0.1,localhost",
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
    from gcp_storage_emulator.server import RequestHandler, Router
    from gcp_storage_emulator.storage import Storage

    def note(**row: object) -> None:
        with log.open("a") as lines:
            lines.write(json.dumps({"time": time.time(), **row}) + "\n")

    class NotingStorage(Storage):
        def create_file(self, bucket_name, file_name, *args) -> None:
            super().create_file(bucket_name, file_name, *args)
            note(created=file_name)

    storage = NotingStorage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    # Otherwise every byte ever deleted or overwritten is kept in memory.
    storage.buckets[BUCKET]["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
    lock = threading.Lock()  # the storage was not written for threads

    class Handler(RequestHandler):
        # Connections stay open, as those of the real service; else each read would open one.
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # header and body are two writes: 40 ms on a kept connection

        def _answer(self) -> None:
            if self.command == "GET":  # of content or of properties: each is a round trip
                time.sleep(read_delay_seconds)
            connection = self.rfile
            # Whole, because a handler that leaves a body unread would spoil the next request.
            self.rfile = io.BytesIO(connection.read(int(self.headers.get("Content-Length", 0))))
            with lock:
                note(method=self.command, path=self.path)
                if self.path == "/token":
                    self._grant()
                else:
                    Router(self).handle(self.command)
            self.rfile = connection

        # The names that http.server looks up.
        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

        def _grant(self) -> None:
            body = json.dumps(
                {"access_token": "offline", "expires_in": 3600, "token_type": "Bearer"}
            ).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128  # a client whose connection finds no place waits a second

    server = Server(("127.0.0.1", 0), functools.partial(Handler, storage))
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
