"""Small real servers that answer as a test says, for the tests of what lies around the services."""

from __future__ import annotations

import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from services.common.server import Server
from services.common.settings import ServerSettings
from services.common.telemetry.metrics import Metrics
from vlmir.image import Limits
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import (
    RestorerServiceServicer,
    add_RestorerServiceServicer_to_server,
)

__all__ = ["SERVICE", "Answering", "a_request", "hello", "scraped", "serving"]

SERVICE = "vlmir.v1.RestorerService"
Answer = Callable[[Any, Any], Awaitable[str]]


async def hello(request: Any, context: Any) -> str:
    return "hello"


def a_request(request_id: str = "", data: bytes = b"a picture") -> restorer_pb2.RestoreRequest:
    return restorer_pb2.RestoreRequest(
        image=image_pb2.ImageSource(data=data), request_id=request_id
    )


class Answering(RestorerServiceServicer):
    """Answers with the caption that a function gives; the stream says it three times."""

    def __init__(self, answer: Answer = hello) -> None:
        self._answer = answer

    async def Restore(self, request: Any, context: Any) -> restorer_pb2.RestoreResponse:
        return restorer_pb2.RestoreResponse(result=_result(await self._answer(request, context)))

    async def RestoreStream(
        self, request: Any, context: Any
    ) -> AsyncIterator[restorer_pb2.RestoreStreamResponse]:
        for _ in range(3):
            result = _result(await self._answer(request, context))
            yield restorer_pb2.RestoreStreamResponse(result=result)


def _result(caption: str) -> restorer_pb2.RestoreResult:
    return restorer_pb2.RestoreResult(report=restorer_pb2.Report(caption=caption))


@asynccontextmanager
async def serving(
    servicer: RestorerServiceServicer, *, metrics: Metrics | None = None, **settings: Any
) -> AsyncIterator[tuple[str, Server]]:
    """Serve on a free port."""
    server = Server(
        [SERVICE],
        lambda server: add_RestorerServiceServicer_to_server(servicer, server),
        settings=ServerSettings(**{"port": 0, "grace_s": 1.0, **settings}),
        limits=Limits(),
        metrics=metrics,
    )
    address = await server.start()
    try:
        yield address, server
    finally:
        await server.stop()


def scraped(address: str | None) -> dict[str, float]:
    """What Prometheus reads: values by name with labels, as written."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}
