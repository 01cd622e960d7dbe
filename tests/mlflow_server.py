"""A real MLflow server for tests, that can die and come back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["MlflowServer"]

STARTS_WITHIN_S = 120


class MlflowServer:
    """A server on SQLite with its files in a folder, on one port for good."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.place, self.address = place, f"http://127.0.0.1:{self._port}"
        self.files = place / "files"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--port", str(self._port), "--artifacts-destination", str(self.files)]
        command += ["--backend-store-uri", f"sqlite:///{self.place}/mlflow.db"]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | quiet
        with (self.place / "log").open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < end:
            assert self._process is not None
            assert self._process.poll() is None, (self.place / "log").read_text()
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.1)
        raise AssertionError(f"MLflow's server did not start: {(self.place / 'log').read_text()}")

    def kill(self) -> None:
        """End it at once, workers and all."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
