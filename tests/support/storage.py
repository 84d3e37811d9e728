"""An S3 server of its own for tests, and repositories in its buckets."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import boto3
from botocore.config import Config

from support.server import free_port

_KEY, _SECRET = "tester", "never-in-a-log"
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


class Store:
    """A running server with a bucket, `models`.

    Args:
        process: the server.
        port: where it listens.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {**_CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint, "AWS_MAX_ATTEMPTS": "1"}
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_SECRET,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def put(self, folder: str, files: Mapping[str, str | bytes]) -> None:
        """Put objects below a folder of the bucket."""
        for key, content in files.items():
            body = content.encode() if isinstance(content, str) else content
            self.client.put_object(Bucket="models", Key=f"{folder}/{key}", Body=body)

    def remove(self, folder: str, *keys: str) -> None:
        """Remove objects."""
        for key in keys:
            self.client.delete_object(Bucket="models", Key=f"{folder}/{key}")


class _Noise(BaseHTTPRequestHandler):
    """Passes requests on to a server; the first answer that holds a certain text comes back with another."""

    endpoint: str
    spoilt: tuple[bytes, bytes]
    done: threading.Event

    def do_GET(self) -> None:
        asked = Request(self.endpoint + self.path, headers={"Authorization": self.headers["Authorization"]})  # noqa: S310
        with urlopen(asked) as sent:  # noqa: S310  # of a server of our own
            body = sent.read()
        if self.spoilt[0] in body and not self.done.is_set():
            self.done.set()
            body = body.replace(*self.spoilt)
        self.send_response(200)
        for name in ("ETag", "Content-Type", "Content-Length"):
            if value := sent.headers.get(name):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the library's name
        """Say nothing."""


@contextmanager
def noisy(endpoint: str, before: bytes, after: bytes) -> Iterator[tuple[str, threading.Event]]:
    """An endpoint before another, with a line that once makes `after` of `before`; it has when the event is set."""
    done = threading.Event()
    handler = type("Noise", (_Noise,), {"endpoint": endpoint, "spoilt": (before, after), "done": done})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", done
        server.shutdown()


@contextmanager
def storing(port: int = 0) -> Iterator[Store]:
    """An S3 server with an empty bucket."""
    port = port or free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline, "the S3 server does not come up"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        store = Store(process, port)
        store.client.create_bucket(Bucket="models")
        yield store
    finally:
        process.kill()
        process.wait()
