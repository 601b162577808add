"""moto's S3 server on this machine, and the environment in which s3:// means it."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}


class Server:
    """Listens on loopback until it is stopped."""

    def __init__(self, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)

    def environment(self) -> dict[str, str]:
        return ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
        raise AssertionError("moto's server does not answer")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def require_credentials(self, wanted: bool) -> None:
        """From now on, answer to any credentials, or to none (none are known to it)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        count = b"0" if wanted else b"inf"
        connection.request("POST", "/moto-api/reset-auth", body=count, headers={"Content-Type": "text/plain"})
        assert connection.getresponse().status == 200
        connection.close()


@contextmanager
def serving(log: Path) -> Iterator[Server]:
    """A server, with the environment of this process turned to it."""
    server, before = Server(log), dict(os.environ)
    try:
        server.wait()
        os.environ.update(server.environment())
        yield server
    finally:
        server.stop()
        os.environ.clear()
        os.environ.update(before)
