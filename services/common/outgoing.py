"""Around every call to another service: the request id and the trace go with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from services.common.calls import REQUEST_ID, request_id
from services.common.telemetry import tracing

__all__ = ["aio_interceptors", "interceptor"]


def interceptor() -> grpc.UnaryUnaryClientInterceptor:
    """The interceptor of a channel for threads; also for server streaming."""
    return _Interceptor()


def aio_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """The interceptors of a channel for coroutines."""
    return (_AioUnary(), _AioStream())


def _headers(span: tracing.Span, metadata: Any) -> list[tuple[str, Any]]:
    """The call's own metadata, with ours; what the call itself says wins."""
    given = list(metadata or ())
    ours = list(span.headers)
    if (current := request_id.get()) != "-":
        ours.append((REQUEST_ID, current))
    names = {key for key, _ in given}
    return [*given, *(pair for pair in ours if pair[0] not in names)]


def _text(method: Any) -> str:
    return method.decode() if isinstance(method, bytes) else str(method)


class _Details(NamedTuple):
    """What gRPC wants to see of a call; its own class cannot be filled."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Interceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return self._intercept(continuation, client_call_details, request)

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return self._intercept(continuation, client_call_details, request)

    def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        span = tracing.client_span(_text(details.method))
        changed = _Details(
            details.method,
            details.timeout,
            _headers(span, details.metadata),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
        call = continuation(changed, request)
        call.add_done_callback(lambda call: span.end(call.code(), call.details() or ""))
        return call


class _Ending:
    """Ends spans when their calls end."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[None]]()

    def watch(self, span: tracing.Span, call: Any) -> None:
        if not span.trace_id:
            return
        task = asyncio.get_running_loop().create_task(self._end(span, call))
        self._tasks.add(task)  # the loop itself would let it be collected
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _end(span: tracing.Span, call: Any) -> None:
        span.end(await call.code(), await call.details() or "")


class _AioUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self) -> None:
        self._ending = _Ending()

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        span = tracing.client_span(_text(client_call_details.method))
        call = await continuation(_aio_details(span, client_call_details), request)
        self._ending.watch(span, call)
        return call


class _AioStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self) -> None:
        self._ending = _Ending()

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        span = tracing.client_span(_text(client_call_details.method))
        call = await continuation(_aio_details(span, client_call_details), request)
        self._ending.watch(span, call)
        return call


def _aio_details(
    span: tracing.Span, details: grpc.aio.ClientCallDetails
) -> grpc.aio.ClientCallDetails:
    return grpc.aio.ClientCallDetails(
        details.method,
        details.timeout,
        grpc.aio.Metadata(*_headers(span, details.metadata)),
        details.credentials,
        details.wait_for_ready,
    )
