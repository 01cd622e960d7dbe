"""Traces: one request as a tree of spans, through all the services it passes.

Off unless OpenTelemetry's standard variable OTEL_EXPORTER_OTLP_ENDPOINT says where spans go (over gRPC); then
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS and their kin hold too. Its packages are imported
only when it is on. When it is off the caller's trace is still passed on, so that one silent service does not break it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

__all__ = [
    "HEADERS",
    "Span",
    "client_span",
    "flush",
    "server_fault",
    "server_span",
    "start",
    "stop",
]

HEADERS = ("traceparent", "tracestate")
"""The metadata by which W3C trace context travels."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_S = 3.0
# What a caller did wrong is no fault of the server that says so.
_SERVER_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}

_provider: TracerProvider | None = None
_passed_on: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("passed_on", default=())


class Span:
    """One hop of one request; when tracing is off it only carries what is passed on.

    Args:
        headers: Metadata for the next hop.
        span: The span itself.
    """

    def __init__(
        self, headers: tuple[tuple[str, str], ...], span: trace.Span | None = None
    ) -> None:
        self.headers, self._span = headers, span

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty when tracing is off or disabled."""
        context = self._span.get_span_context() if self._span else None
        return f"{context.trace_id:032x}" if context and context.is_valid else ""

    def end(self, code: grpc.StatusCode, message: str = "", *, faults: bool = True) -> None:
        """End the span; more calls have no effect.

        Args:
            code: How the call ended.
            message: Why it failed.
            faults: Whether this status counts as a fault of this hop.
        """
        if self._span is None or not self._span.is_recording():
            return
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("rpc.grpc.status_code", code.value[0])
        if faults and code is not grpc.StatusCode.OK:
            self._span.set_status(Status(StatusCode.ERROR, message or code.name))
        self._span.end()


def start(name: str, processor: SpanProcessor | None = None) -> None:
    """Begin to trace this process, if the environment asks for it; more calls have no effect.

    Args:
        name: Of this process in traces, unless OTEL_SERVICE_NAME gives another.
        processor: Takes the spans in place of an exporter made from the environment.
    """
    global _provider
    if _provider is not None or not (processor or any(map(os.environ.get, _ENDPOINTS))):
        return
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    resource = Resource.create({"service.name": name}).merge(OTELResourceDetector().detect())
    # At exit it would wait for a collector that is down; `flush` does so for a few seconds at most.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor or _exporting())
    _provider = provider


def _exporting() -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())


def flush() -> None:
    """Send the spans that wait; gives up after a few seconds where nobody takes them."""
    provider = _provider
    if provider is not None:
        thread = threading.Thread(target=provider.force_flush, daemon=True)
        thread.start()
        thread.join(_FLUSH_S)


def stop() -> None:
    """End tracing; spans that wait are sent."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        provider.shutdown()


@contextmanager
def server_span(
    method: str, metadata: Iterable[tuple[str, str | bytes]], attributes: Mapping[str, str]
) -> Iterator[Span]:
    """A span around a call that is served, child of the caller's; current while the block runs, which must end it.

    Args:
        method: Full name of the method, ``/service/method``.
        metadata: That came with the call.
        attributes: More to tell about it.
    """
    carrier = {key: value for key, value in metadata if key in HEADERS and isinstance(value, str)}
    if _provider is None:
        _passed_on.set(tuple(carrier.items()))
        yield Span(())
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    span = _provider.get_tracer(__name__).start_span(
        method.strip("/"),
        context=TraceContextTextMapPropagator().extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes={**_attributes(method), **attributes},
    )
    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
        yield Span((), span)


def client_span(method: str) -> Span:
    """A span for a call about to be made, child of the current one; its headers go into the call's metadata."""
    if _provider is None or method.startswith("/grpc."):  # health checks would drown the rest
        return Span(_passed_on.get())
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    span = _provider.get_tracer(__name__).start_span(
        method.strip("/"), kind=trace.SpanKind.CLIENT, attributes=_attributes(method)
    )
    carrier = dict[str, str]()
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    return Span(tuple(carrier.items()), span)


def server_fault(code: grpc.StatusCode) -> bool:
    """Whether a status is the fault of the server that gives it."""
    return code in _SERVER_FAULTS


def _attributes(method: str) -> dict[str, str]:
    service, _, name = method.strip("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
