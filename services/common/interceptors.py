"""Around every call: a request id, one line in the log, errors turned into statuses."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from services.common.errors import to_status
from vlmir.errors import OptionError

__all__ = ["CallInterceptor", "request_id"]

log = logging.getLogger("vlmir.calls")

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the request being served; the work queue carries it into its threads."""

_VALID_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PROBES = ("/grpc.health.", "/grpc.reflection.")

# gRPC's handlers are generic over messages that only the generated code names.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps unary and server-streaming handlers; others (reflection's) pass untouched."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of one call, wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.request_streaming or method.startswith(_PROBES):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(method, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(method, handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )


def _unary(method: str, behaviour: Any) -> Any:
    async def handle(request: Any, context: Context) -> Any:
        async with _Call(method, request, context):
            return await behaviour(request, context)

    return handle


def _stream(method: str, behaviour: Any) -> Any:
    # A coroutine that writes, no generator that yields: gRPC cancels the former where it stands,
    # the latter is left to the garbage collector, and the work behind it would go on till then.
    async def handle(request: Any, context: Context) -> None:
        async with (
            _Call(method, request, context),
            aclosing(behaviour(request, context)) as replies,
        ):
            async for reply in replies:
                await context.write(reply)

    return handle


class _Call:
    """One call from entry to exit, as a context manager."""

    def __init__(self, method: str, request: Any, context: Context) -> None:
        self._method, self._context = method, context
        self._wanted_id = getattr(request, "request_id", "")
        self._id = self._wanted_id or uuid.uuid4().hex
        self._bytes = request.ByteSize()
        # Read now: asking a cancelled call for its peer crashes the process (grpcio 1.85).
        self._peer = context.peer()
        self._start = time.monotonic()

    async def __aenter__(self) -> None:
        if not _VALID_ID.fullmatch(self._id):
            self._id = uuid.uuid4().hex
            await self._fail(
                OptionError(
                    "request_id may have letters, digits and . _ : - only, at most 128 of them; "
                    f"got {self._wanted_id[:40]!r}"
                )
            )
        request_id.set(self._id)

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._report(grpc.StatusCode.OK.name)
        elif isinstance(error, grpc.aio.AbortError):
            self._report("ABORTED_BY_HANDLER")
        elif isinstance(error, Exception):
            await self._fail(error)
        else:  # asyncio.CancelledError or GeneratorExit: nobody is listening any more
            self._report(grpc.StatusCode.CANCELLED.name)

    async def _fail(self, error: Exception) -> None:
        status = to_status(error, self._id)
        code = _code(status)
        if code is grpc.StatusCode.INTERNAL:
            log.error("request %s failed unexpectedly", self._id, exc_info=error)
        self._report(code.name, status.message)
        rich = rpc_status.to_status(status)
        await self._context.abort(code, status.message, rich.trailing_metadata)

    def _report(self, code: str, message: str = "") -> None:
        milliseconds = (time.monotonic() - self._start) * 1e3
        log.info(
            "%s %s id=%s peer=%s bytes=%d ms=%.1f%s",
            self._method,
            code,
            self._id,
            self._peer,
            self._bytes,
            milliseconds,
            f" {message!r}" if message else "",
        )


def _code(status: Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)
