"""Metrics, traces and log lines of real servers."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from services.common.channels import connect, connect_sync
from services.common.settings import ChannelSettings
from services.common.telemetry import tracing
from services.common.telemetry.logs import JsonFormatter, configure_logging
from services.common.telemetry.metrics import Metrics
from tests.unit.services.asking import SERVICE, Answering, a_request, scraped, serving
from vlmir.errors import OptionError, UnavailableError
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RESTORE = f'method="Restore",service="{SERVICE}"'


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.start("test", SimpleSpanProcessor(exporter))
    yield exporter
    tracing.stop()


def by_kind(exporter: InMemorySpanExporter, kind: SpanKind) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.kind is kind]


def test_a_services_own_numbers_are_read_when_they_are_asked_for() -> None:
    metrics, depth, count = Metrics(), [3], [5]
    metrics.observe("queue_depth", "Requests inside.", lambda: depth[0])
    for name in ("hit", "miss"):
        metrics.observe("cache_total", "Lookups.", lambda: count[0], outcome=name)
    metrics.observe_info("release", "In use.", lambda: {"release": f"tiny-{depth[0]}"})
    metrics.observe("broken", "Cannot be read.", lambda: 1 / 0)
    endpoint = metrics.serve("127.0.0.1", 0)
    try:
        first = scraped(endpoint.address)
        depth[0], count[0] = 4, 6
        second = scraped(endpoint.address)
    finally:
        endpoint.close()
    assert first["vlmir_queue_depth"] == 3 and second["vlmir_queue_depth"] == 4
    assert second['vlmir_cache_total{outcome="hit"}'] == 6
    assert first['vlmir_release_info{release="tiny-3"}'] == 1
    assert 'vlmir_release_info{release="tiny-3"}' not in second
    assert "vlmir_broken" not in first
    assert second["process_resident_memory_bytes"] > 1e6
    with pytest.raises(OSError):
        scraped(endpoint.address)


def test_a_number_is_observed_once_and_keeps_its_labels() -> None:
    metrics = Metrics()
    metrics.observe("hits_total", "Hits.", lambda: 1, cache="a")
    with pytest.raises(ValueError, match="already"):
        metrics.observe("hits_total", "Hits.", lambda: 1, cache="a")
    with pytest.raises(ValueError, match="labels"):
        metrics.observe("hits_total", "Hits.", lambda: 1)


def test_calls_are_counted_by_method_and_code() -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def answer(request: Any, context: Any) -> str:
        if request.request_id == "bad":
            raise OptionError("no")
        if request.request_id == "slow":
            entered.set()
            await gate.wait()
        return "hello"

    async def scenario() -> tuple[dict[str, float], dict[str, float]]:
        async with (
            serving(Answering(answer), metrics_port=0) as (address, server),
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: Any = RestorerServiceStub(channel)
            await stub.Restore(a_request())
            with pytest.raises(grpc.RpcError):
                await stub.Restore(a_request("bad"))
            made_up = channel.unary_unary("/made.up/Method")
            with pytest.raises(grpc.RpcError):
                await made_up(b"")
            slow = asyncio.ensure_future(stub.Restore(a_request("slow")))
            await entered.wait()
            during = await asyncio.to_thread(scraped, server.metrics_address)
            gate.set()
            await slow
            return during, await asyncio.to_thread(scraped, server.metrics_address)

    during, after = asyncio.run(scenario())
    assert during[f"vlmir_requests_in_flight{{{RESTORE}}}"] == 1
    assert after[f"vlmir_requests_in_flight{{{RESTORE}}}"] == 0
    total = 'vlmir_requests_total{code="%s",' + RESTORE + "}"
    assert (during[total % "OK"], after[total % "OK"]) == (1, 2)
    assert after[total % "INVALID_ARGUMENT"] == 1
    other = 'vlmir_requests_total{code="UNIMPLEMENTED",method="other",service="other"}'
    assert after[other] == 1 and not any("made" in name for name in after)
    assert after[f"vlmir_request_seconds_count{{{RESTORE}}}"] == 3
    assert after[f'vlmir_request_seconds_bucket{{le="600.0",{RESTORE}}}'] == 3
    sizes = sum(a_request(name).ByteSize() for name in ("", "bad", "slow"))
    assert after[f"vlmir_request_bytes_sum{{{RESTORE}}}"] == sizes


def test_a_call_whose_time_ran_out_is_counted_as_such() -> None:
    async def answer(request: Any, context: Any) -> str:
        await asyncio.sleep(60)
        return ""

    async def scenario() -> dict[str, float]:
        async with (
            serving(Answering(answer), metrics_port=0) as (address, server),
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: Any = RestorerServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                await stub.Restore(a_request(), timeout=0.1)
            call = stub.Restore(a_request())
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.sleep(0.1)
            return await asyncio.to_thread(scraped, server.metrics_address)

    after = asyncio.run(scenario())
    for code in ("DEADLINE_EXCEEDED", "CANCELLED"):
        assert after[f'vlmir_requests_total{{code="{code}",{RESTORE}}}'] == 1


def test_without_a_port_there_are_no_metrics_to_read() -> None:
    async def scenario() -> str | None:
        async with serving(Answering()) as (_, server):
            return server.metrics_address

    assert asyncio.run(scenario()) is None


def test_a_taken_port_for_metrics_is_told() -> None:
    async def scenario(port: int) -> None:
        async with serving(Answering(), metrics_port=port):
            pass

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UnavailableError, match="--metrics-port"):
            asyncio.run(scenario(taken.getsockname()[1]))


@pytest.mark.parametrize("method", ["Restore", "RestoreStream"])
@pytest.mark.parametrize("threads", [False, True])
def test_a_trace_goes_through_all_hops(
    spans: InMemorySpanExporter, method: str, threads: bool
) -> None:
    async def scenario() -> None:
        async with serving(Answering()) as (back, _):

            def ask_in_thread() -> None:
                with connect_sync(back, ChannelSettings()) as channel:
                    reply = getattr(RestorerServiceStub(channel), method)(a_request())
                    list(reply) if method == "RestoreStream" else None

            async def ask() -> None:
                async with connect(back, ChannelSettings()) as channel:
                    call = getattr(RestorerServiceStub(channel), method)(a_request())
                    if method == "RestoreStream":
                        assert len([reply async for reply in call]) == 3
                    else:
                        await call

            async def answer(request: Any, context: Any) -> str:
                await (asyncio.to_thread(ask_in_thread) if threads else ask())
                return "hello"

            async with (
                serving(Answering(answer)) as (front, _),
                grpc.aio.insecure_channel(front) as channel,
            ):
                stub: Any = RestorerServiceStub(channel)
                metadata = (("traceparent", TRACEPARENT),)
                await stub.Restore(a_request("r-7"), metadata=metadata)

    asyncio.run(scenario())
    client, (inner, outer) = (
        by_kind(spans, SpanKind.CLIENT)[0],
        by_kind(spans, SpanKind.SERVER),
    )
    assert outer.parent is not None and f"{outer.parent.span_id:016x}" == TRACEPARENT.split("-")[2]
    assert client.parent is not None and client.parent.span_id == outer.context.span_id
    assert inner.parent is not None and inner.parent.span_id == client.context.span_id
    assert {f"{span.context.trace_id:032x}" for span in (inner, client, outer)} == {
        TRACEPARENT.split("-")[1]
    }
    assert inner.name == client.name == f"{SERVICE}/{method}"
    for span in (inner, outer):
        # The id of the request goes with the trace, though the inner message does not have it.
        assert span.attributes is not None and span.attributes["vlmir.request_id"] == "r-7"
    attributes = dict(client.attributes or {})
    assert attributes == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": method,
        "rpc.grpc.status_code": 0,
    }


def test_a_span_says_how_the_call_ended(spans: InMemorySpanExporter) -> None:
    async def answer(request: Any, context: Any) -> str:
        raise OptionError("no") if request.request_id == "bad" else UnavailableError("gone")

    async def scenario() -> None:
        async with (
            serving(Answering(answer)) as (address, _),
            connect(address, ChannelSettings()) as channel,
        ):
            stub: Any = RestorerServiceStub(channel)
            for name in ("bad", "gone"):
                with pytest.raises(grpc.RpcError):
                    await stub.Restore(a_request(name))
            await asyncio.sleep(0)

    asyncio.run(scenario())
    bad, gone = by_kind(spans, SpanKind.SERVER)
    assert (bad.attributes or {})["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[
        0
    ]
    # A bad request is no fault of the server, only of its client.
    assert bad.status.status_code is StatusCode.UNSET
    assert (gone.status.status_code, gone.status.description) == (StatusCode.ERROR, "gone")
    clients = by_kind(spans, SpanKind.CLIENT)
    assert [span.status.status_code for span in clients] == [StatusCode.ERROR] * 2


def test_a_server_that_does_not_trace_passes_the_trace_on() -> None:
    seen: list[str] = []

    async def note(request: Any, context: Any) -> str:
        seen.extend(str(v) for k, v in context.invocation_metadata() if k in tracing.HEADERS)
        return "hello"

    async def scenario() -> None:
        async with serving(Answering(note)) as (back, _):

            async def answer(request: Any, context: Any) -> str:
                async with connect(back, ChannelSettings()) as channel:
                    stub: Any = RestorerServiceStub(channel)
                    await stub.Restore(a_request())
                return "hello"

            async with (
                serving(Answering(answer)) as (front, _),
                grpc.aio.insecure_channel(front) as channel,
            ):
                stub: Any = RestorerServiceStub(channel)
                metadata = (("traceparent", TRACEPARENT), ("tracestate", "a=1"))
                await stub.Restore(a_request(), metadata=metadata)
                await stub.Restore(a_request())

    asyncio.run(scenario())
    assert seen == [TRACEPARENT, "a=1"]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A real receiver of OTLP."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            service = next(
                a.value.string_value
                for a in resource.resource.attributes
                if a.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.names += [(service, span.name) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_a_collector_before_the_server_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = Collector()
    with ThreadPoolExecutor(1) as pool:
        receiver = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
        port = receiver.add_insecure_port("127.0.0.1:0")
        receiver.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")

        async def scenario() -> None:
            async with (
                serving(Answering()) as (address, _),
                grpc.aio.insecure_channel(address) as channel,
            ):
                stub: Any = RestorerServiceStub(channel)
                await stub.Restore(a_request())

        try:
            asyncio.run(scenario())
            assert collector.names == [("vlmir-restorer", f"{SERVICE}/Restore")]
        finally:
            tracing.stop()
            receiver.stop(None)


def test_a_collector_that_is_down_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    class Stuck(SimpleSpanProcessor):
        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return release.wait(timeout_millis)

    monkeypatch.setattr(tracing, "_FLUSH_S", 0.1)
    tracing.start("test", Stuck(InMemorySpanExporter()))
    try:
        began = time.monotonic()
        tracing.flush()
        assert time.monotonic() - began < 2
    finally:
        release.set()
        tracing.stop()


def test_nothing_of_opentelemetry_is_loaded_while_tracing_is_off() -> None:
    code = (
        "import sys, services.common.server, services.common.channels\n"
        "from services.common.telemetry import tracing\n"
        "tracing.start('x')\n"
        "with tracing.server_span('/a/b', (), {}): tracing.client_span('/c/d')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_call_is_one_line_for_people_and_for_machines(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: Any, context: Any) -> str:
        logging.getLogger("vlmir.test").warning("inside")
        raise OptionError("no such option")

    async def scenario() -> None:
        async with (
            serving(Answering(answer)) as (address, _),
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: Any = RestorerServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                await stub.Restore(a_request("r-1"))

    lines: list[dict[str, Any]] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    handler = Collecting()
    logging.getLogger("vlmir").addHandler(handler)
    try:
        with caplog.at_level(logging.INFO):
            asyncio.run(scenario())
    finally:
        logging.getLogger("vlmir").removeHandler(handler)
    (text,) = [r.getMessage() for r in caplog.records if r.name == "vlmir.calls"]
    (line,) = [line for line in lines if line["logger"] == "vlmir.calls"]
    trace_id = f"{by_kind(spans, SpanKind.SERVER)[0].context.trace_id:032x}"
    assert text.startswith(f"/{SERVICE}/Restore INVALID_ARGUMENT id=r-1 peer=ipv4:127.0.0.1:")
    assert text.endswith(f"trace={trace_id} 'no such option'")
    assert (line["method"], line["code"]) == (f"/{SERVICE}/Restore", "INVALID_ARGUMENT")
    assert (line["request_id"], line["trace_id"]) == ("r-1", trace_id)
    assert line["bytes"] == a_request("r-1").ByteSize() and line["ms"] > 0
    assert line["reason"] == "no such option"
    (inside,) = [line for line in lines if line["message"] == "inside"]
    assert (inside["level"], inside["request_id"]) == ("WARNING", "r-1")


@pytest.mark.parametrize("format", ["text", "json"])
def test_logging_is_set_up_as_asked(
    format: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    configure_logging("INFO", format)
    logging.getLogger("vlmir.x").info("told")
    logging.getLogger("vlmir.x").debug("not told")
    (line,) = capsys.readouterr().err.splitlines()
    if format == "json":
        assert json.loads(line)["message"] == "told"
    else:
        assert line.endswith("INFO vlmir.x told")


def test_a_json_line_has_the_traceback() -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "failed" and "KeyError: 'gone'" in line["exception"]
    assert "request_id" not in line
