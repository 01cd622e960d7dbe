"""A real Triton for tests, where there is one.

``VLMIR_TRITON_SERVER`` names a command that starts and stops one: ``start --dir D --models REPOSITORY --python PYTHON
--load MODEL`` prints ``TRITON_GRPC=host:port`` and ``TRITON_METRICS=URL`` when it is ready, ``stop --dir D`` ends it.
Without the variable the command is looked for beside this repository.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.calls import PATIENCE_S, ROOT, exported, metrics
from training.release.triton_repository import write_entry

BESIDE = ROOT.parent / "shared" / "tools" / "triton-server"
SERVER = os.environ.get("VLMIR_TRITON_SERVER") or (str(BESIDE) if BESIDE.exists() else None)

needs_triton = pytest.mark.skipif(
    SERVER is None, reason="no Triton: name one in VLMIR_TRITON_SERVER"
)


class RealTriton:
    """A Triton that serves the small bundle's embedder."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self._repository, self._folder = repository, folder
        self._env = {"TRITON_SERVER_HOME": str(ROOT / "build" / "triton-server")} | dict(os.environ)
        self.address = ""
        self.metrics_port = 0

    def start(self) -> None:
        """Start it, at the same address as before."""
        port = self.address.rpartition(":")[2]
        at = ["--grpc-port", port] if port else []
        models = ["--models", str(self._repository), "--python", sys.executable, "--load", "*"]
        printed = self._run("start", *models, *at)
        told = dict(line.partition("=")[::2] for line in printed.splitlines())
        self.address = told["TRITON_GRPC"]
        self.metrics_port = urlsplit(told["TRITON_METRICS"]).port or 0

    def stop(self) -> None:
        """Kill it: a graceful end waits for connections."""
        self._run("stop", "--kill")

    def inferences(self, model: str = "") -> float:
        """Requests of a model, or of all, that ended well so far."""
        return self._counted("nv_inference_request_success", f'model="{model}')

    def cancelled(self) -> float:
        """Requests that were cancelled so far."""
        return self._counted("nv_inference_request_failure", 'reason="CANCELED"')

    def _counted(self, name: str, part: str) -> float:
        counted = metrics(self.metrics_port)
        return sum(n for key, n in counted.items() if key.startswith(name) and part in key)

    def kill_models(self) -> None:
        """Kill the processes that run the models, as the system does when it needs memory."""
        for process in self._processes("python_backend_stub"):
            os.kill(process, signal.SIGKILL)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Stop the server for a while, but not its models: asleep, they would be taken for dead within a second."""
        (server,) = self._processes("bin/tritonserver")
        os.kill(server, signal.SIGSTOP)
        _await_stop(server)
        try:
            yield
        finally:
            os.kill(server, signal.SIGCONT)

    def _processes(self, command: str) -> list[int]:
        """Those of this server whose command line has these characters in it."""
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):  # not a process, or one that is no longer there
                mine = str(self._folder).encode() in (process / "environ").read_bytes()
                if mine and command.encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found

    def _run(self, what: str, *arguments: str) -> str:
        assert SERVER is not None
        command = [SERVER, what, "--dir", str(self._folder), *arguments]
        done = subprocess.run(command, env=self._env, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout


def _await_stop(process: int) -> None:
    """Wait until each thread has stopped: one stops only when it is its turn to run."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        threads = [*Path(f"/proc/{process}/task").iterdir()]
        # The state follows the name, which stands in brackets and may hold anything.
        if all((t / "stat").read_text().rpartition(") ")[2].startswith("T") for t in threads):
            return
        time.sleep(0.005)
    raise AssertionError(f"process {process} does not stop")


@contextmanager
def running_triton(repository: Path, folder: Path) -> Iterator[RealTriton]:
    """One that serves what is in a model repository; ``folder`` is for what it writes."""
    found = RealTriton(repository, folder)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def write_embedder(repository: Path, bundle: Path, *, version: int = 1) -> None:
    """Put a bundle's embedder into a model repository, for Triton's Python backend."""
    for graph in exported(bundle):
        write_entry(repository, graph.name, graph.data, version=version, backend="python")
