"""One call that is served, from entry to exit: its id, span, metrics and line in the log; errors become statuses."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias, cast

import grpc
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from services.common.errors import to_status
from services.common.telemetry import tracing
from services.common.telemetry.meters import CallMeter, Meters
from vlmir.errors import OptionError

__all__ = [
    "CALLER",
    "REQUEST_ID",
    "TIME_BUDGET",
    "Context",
    "Sized",
    "caller",
    "request_id",
    "served",
]

log = logging.getLogger("vlmir.calls")

REQUEST_ID = "vlmir-request-id"
"""The metadata that names a request, where its message does not."""

TIME_BUDGET = "vlmir-time-budget-ms"
"""The metadata that says how many milliseconds the caller grants, for servers that cannot see the deadline."""

CALLER = "vlmir-caller"
"""The metadata in which the gateway tells the restorer who calls. Only it can reach the restorer."""

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the request being served; the work queue carries it into its threads."""

caller: ContextVar[str] = ContextVar("caller", default="")
"""Who sent the request being served, where callers have to say so."""

# gRPC's handlers are generic over messages that only the generated code names.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_VALID_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Sized(Protocol):
    """A request, as far as is needed here; it may have a `request_id`."""

    def ByteSize(self) -> int:
        """Its size on the wire, bytes."""


@asynccontextmanager
async def served(
    method: str, request: Sized, context: Context, metrics: Meters
) -> AsyncIterator[None]:
    """Serve one call in the block: what it raises is told to the caller as a status.

    Args:
        method: Full name of the method, ``/service/method``.
        request: The message.
        context: Of the call.
        metrics: Where it is counted.
    """
    call = _Call(method, request, context)
    attributes = {"vlmir.request_id": call.id}
    with (
        metrics.call(method, call.bytes) as meter,
        tracing.server_span(method, call.metadata, attributes) as span,
    ):
        call.meter, call.span = meter, span
        try:
            call.begin()
            yield
        except grpc.aio.AbortError:
            call.end(call.told(grpc.StatusCode.UNKNOWN), context.details())
            raise
        except Exception as error:
            await call.fail(error)
        except (
            BaseException
        ):  # asyncio.CancelledError or GeneratorExit: nobody is listening any more
            call.end(call.why_cancelled())
            raise
        else:
            call.end(call.told(grpc.StatusCode.OK))


class _Call:
    meter: CallMeter
    span: tracing.Span

    def __init__(self, method: str, request: Sized, context: Context) -> None:
        self._method, self._context = method, context
        self.metadata = tuple(context.invocation_metadata() or ())
        self._wanted_id = getattr(request, "request_id", "") or self._sent_id()
        self._is_valid = not self._wanted_id or bool(_VALID_ID.fullmatch(self._wanted_id))
        self.id = self._wanted_id if self._wanted_id and self._is_valid else uuid.uuid4().hex
        self.bytes = request.ByteSize()
        # Read now: asking a cancelled call for its peer crashes the process (grpcio 1.85).
        self._peer = context.peer()
        # None without a deadline, whatever the type stubs say.
        remaining = cast(float | None, context.time_remaining())
        self._start = time.monotonic()
        self._deadline = None if remaining is None else self._start + remaining

    def _sent_id(self) -> str:
        return next((str(value) for key, value in self.metadata if key == REQUEST_ID), "")

    def begin(self) -> None:
        request_id.set(self.id)
        if not self._is_valid:
            raise OptionError(
                "request_id may have letters, digits and . _ : - only, at most 128 of them; "
                f"got {self._wanted_id[:40]!r}"
            )

    async def fail(self, error: Exception) -> None:
        status = to_status(error, self.id)
        code = _code(status)
        if code is grpc.StatusCode.INTERNAL:
            log.error("request %s failed unexpectedly", self.id, exc_info=error)
        self.end(code, status.message)
        rich = rpc_status.to_status(status)
        await self._context.abort(code, status.message, rich.trailing_metadata)

    def told(self, default: grpc.StatusCode) -> grpc.StatusCode:
        """The status that the handler has set."""
        # None where it has set none, whatever the type stubs say.
        return cast(grpc.StatusCode | None, self._context.code()) or default

    def why_cancelled(self) -> grpc.StatusCode:
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED

    def end(self, code: grpc.StatusCode, message: str = "") -> None:
        self.meter.code = code.name
        self.span.end(code, message, faults=tracing.server_fault(code))
        milliseconds = round((time.monotonic() - self._start) * 1e3, 1)
        fields: dict[str, object] = {
            "method": self._method,
            "code": code.name,
            "request_id": self.id,
            "peer": self._peer,
            "bytes": self.bytes,
            "ms": milliseconds,
        }
        more = {"trace_id": self.span.trace_id, "caller": caller.get(), "reason": message}
        fields |= {key: value for key, value in more.items() if value}
        log.info("%s", _line(fields), extra={"call": fields})


def _line(fields: dict[str, object]) -> str:
    """``/service/method CODE id=… peer=… bytes=… ms=…`` and, where there are any, trace, caller and reason."""
    named = {"request_id": "id", "trace_id": "trace"}
    pairs = [
        f"{named.get(key, key)}={value}"
        for key, value in list(fields.items())[2:]
        if key != "reason"
    ]
    reason = [repr(fields["reason"])] if "reason" in fields else []
    return " ".join([str(fields["method"]), str(fields["code"]), *pairs, *reason])


def _code(status: Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)
