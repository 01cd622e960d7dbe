"""What the tests of several services need to call them."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

if TYPE_CHECKING:
    from training.onnx_export import OnnxGraph

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    """Name of the status and the sentence with which a call fails."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError("the call succeeded")


async def retry_delay(call: Awaitable[Any]) -> float:
    """Seconds after which an overloaded server wants to be asked again."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(error)
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        return retry.retry_delay.ToNanoseconds() / 1e9
    raise AssertionError("the call succeeded")


async def health(channel: grpc.aio.Channel, service: str) -> int:
    """What a server reports of a service."""
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def becomes(channel: grpc.aio.Channel, service: str, wanted: int) -> None:
    """Returns when a server reports this health."""
    async with asyncio.timeout(PATIENCE_S):
        while await health(channel, service) != wanted:
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def wait_until(
    condition: Callable[[], bool],
    *,
    within_s: float = PATIENCE_S,
    told: Callable[[], object] = lambda: "it did not happen",
) -> None:
    """As :func:`until`, outside of an event loop; ``told`` says what is wrong if the time is over."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.02)


@functools.cache
def exported(bundle: Path) -> tuple[OnnxGraph, OnnxGraph]:
    """A bundle's embedder as ONNX; it takes a while, so it is done once for all tests."""
    from training.onnx_export import export_onnx  # it takes a while to import
    from vlmir.bundle import load_bundle

    return export_onnx(load_bundle(bundle))


def described(address: str, service: str) -> bool:
    """Whether a server's reflection knows a service and its file; not to be asked from within its event loop."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        return service in database.get_services() and bool(
            database.FindFileContainingSymbol(service)
        )


def metrics(port: int) -> dict[str, float]:
    """What a server counts: names with labels, as Prometheus reads them; not to be asked from within its event loop."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as page:
        lines = page.read().decode().splitlines()
    parts = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(number) for name, _, number in parts}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Gate:
    """Stands before a method: counts the items of each call, and lets each call through when told to."""

    def __init__(self, method: Callable[..., Any], *, open_: bool = False) -> None:
        self.batches: list[int] = []
        self._method, self._open = method, open_
        self._tokens = threading.Semaphore(0)

    def __get__(self, owner: object, _: type) -> Callable[[Any], Any]:
        def gated(batch: Any) -> Any:
            self.batches.append(len(batch))
            if not self._open:
                assert self._tokens.acquire(timeout=PATIENCE_S)
            return self._method(owner, batch)

        return gated

    def let(self, calls: int = 1) -> None:
        """Let that many calls through."""
        self._tokens.release(calls)

    def open(self) -> None:
        """Let all calls through from now on."""
        self._open = True
        self._tokens.release(100)


@contextmanager
def process(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address; killed at the end if it still runs."""
    command = [sys.executable, "-m", module, "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            line = started.stdout.readline()
            assert line.startswith("serving "), line
            yield started, line.split()[-1]
        finally:
            started.kill()


def ends_gracefully(started: subprocess.Popen[str]) -> bool:
    """Whether a server ends well when told to stop."""
    started.send_signal(signal.SIGTERM)
    return started.wait(PATIENCE_S) == 0


def fails(module: str, *arguments: str) -> tuple[int, str]:
    """Exit status and stderr of a server that cannot start."""
    command = [sys.executable, "-m", module, "--port", "0", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr
