"""The three services as processes, for tests of what calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from tests.integration.calls import PATIENCE_S, ROOT, free_port, metrics, wait_until
from vlmir.v1 import sampler_pb2
from vlmir.v1.sampler_pb2_grpc import SamplerServiceStub

NAMES = ("captioner", "embedder", "sampler")


class ServiceProcess:
    """A service that can be killed and started again at the same address."""

    def __init__(self, name: str, bundle: Path, *flags: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self._command = [sys.executable, "-m", f"services.{name}", "--port", str(self.port)]
        self._command += ["--metrics-port", str(self.metrics_port), "--bundle", str(bundle), *flags]
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return at once."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
        )

    def wait(self) -> None:
        """Return when it serves."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("serving "), line

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.end()

    def end(self) -> None:
        """End it for good."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def restart(self) -> None:
        self.start()
        self.wait()


class KeptService(ServiceProcess):
    """One that ``deploy/keep`` begins again whenever it ends.

    Args:
        folder: Where its log lies; empty of others' logs of that name.
    """

    def __init__(self, folder: Path, name: str, bundle: Path, *flags: str) -> None:
        super().__init__(name, bundle, *flags)
        self._name, self._folder = name, folder
        self._command.insert(0, str(ROOT / "deploy" / "keep"))

    def start(self) -> None:
        (self._folder / "logs").mkdir(exist_ok=True)
        (self._folder / "up").touch()
        kept = {"VLMIR_CLUSTER": str(self._folder), "HONCHO_PROCESS_NAME": f"{self._name}.1"}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | kept
        self._process = subprocess.Popen(self._command, cwd=ROOT, text=True, env=environment)

    def wait(self) -> None:
        log = self._folder / "logs" / f"{self._name}.log"
        wait_until(
            lambda: log.exists() and "serving " in log.read_text(),
            within_s=3 * PATIENCE_S,
            told=log.read_text,
        )

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None

    @property
    def processes(self) -> list[psutil.Process]:
        """The service itself, while it runs."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children()


class Cluster:
    """Captioner, embedder and sampler, running."""

    def __init__(self, bundle: Path, flags: dict[str, tuple[str, ...]], kept: Path | None) -> None:
        self.captioner, self.embedder, self.sampler = (
            ServiceProcess(name, bundle, *flags.get(name, ()))
            if kept is None
            else KeptService(kept, name, bundle, *flags.get(name, ()))
            for name in NAMES
        )

    @property
    def services(self) -> list[ServiceProcess]:
        return [self.captioner, self.embedder, self.sampler]

    @property
    def settings(self) -> dict[str, str]:
        """Their addresses, as settings of the restorer."""
        return {name: service.address for name, service in zip(NAMES, self.services, strict=True)}

    @property
    def sampled(self) -> int:
        """Pictures that the sampler has restored."""
        counted = metrics(self.sampler.metrics_port)
        labels = 'code="OK",method="Sample",service="vlmir.v1.SamplerService"'
        return int(counted.get(f"vlmir_requests_total{{{labels}}}", 0))

    @property
    def sampler_depth(self) -> int:
        """Pictures in the sampler."""
        with grpc.insecure_channel(self.sampler.address) as channel:
            info: Any = SamplerServiceStub(channel).Info(sampler_pb2.SamplerServiceInfoRequest())
        return int(info.service.queue_depth)

    def wait_for_depth(self, wanted: int) -> None:
        """Return when the sampler has so many pictures."""
        wait_until(lambda: self.sampler_depth == wanted)

    def wait(self) -> None:
        """Return when all serve."""
        for service in self.services:
            service.wait()


@contextmanager
def starting_cluster(
    bundle: Path, *, kept: Path | None = None, **flags: tuple[str, ...]
) -> Iterator[Cluster]:
    """Start the services at free ports, without waiting for them; all are gone at the end.

    Args:
        bundle: Folder of the weights.
        kept: Folder for logs, if those that end are to be begun again.
        flags: More for the command line of a service, by its name.
    """
    cluster = Cluster(bundle, flags, kept)
    try:
        for service in cluster.services:
            service.start()
        yield cluster
    finally:
        for service in cluster.services:
            service.end()
