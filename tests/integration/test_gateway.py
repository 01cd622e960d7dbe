"""The gateway between real clients and real servers."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.common.calls import CALLER, REQUEST_ID, TIME_BUDGET, request_id
from services.common.errors import to_details, to_status
from services.common.server import Server
from services.common.telemetry import tracing
from services.gateway.server import GatewaySettings, running
from services.gateway.tokens import digest
from tests.certificates import Authority
from tests.integration.calls import free_port
from tests.unit.services.asking import SERVICE, Answering, a_request, scraped, serving
from tests.unit.services.harness import SmallRestorer, a_picture, running_server
from vlmir.errors import (
    BundleError,
    LimitError,
    OptionError,
    OverloadedError,
    ReleaseError,
    UnavailableError,
    VlmirError,
)
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub, add_RestorerServiceServicer_to_server

ROOT = Path(__file__).parents[2]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@asynccontextmanager
async def gateway(upstream: str, **settings: Any) -> AsyncIterator[tuple[str, Server]]:
    chosen = {"upstream": upstream, "port": 0, "grace_s": 1.0, "health_s": 0.1, **settings}
    async with running(GatewaySettings(**chosen)) as (address, server):
        yield address, server


@asynccontextmanager
async def fronted(servicer: Answering, **settings: Any) -> AsyncIterator[Any]:
    """A stub of a gateway before a server of ours."""
    async with (
        serving(servicer) as (upstream, _),
        gateway(upstream, **settings) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield RestorerServiceStub(channel)


@asynccontextmanager
async def fronted_like_ray(servicer: Answering) -> AsyncIterator[Any]:
    """A stub of a gateway before a server that, as Ray Serve does, gives code and text alone."""
    server = grpc.aio.server()
    add_RestorerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with (
            gateway(f"127.0.0.1:{port}") as (address, _),
            grpc.aio.insecure_channel(address) as channel,
        ):
            yield RestorerServiceStub(channel)
    finally:
        await server.stop(None)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The details beside the status, by kind; the sentence in them is that of the status."""
    found: dict[str, Any] = {}
    for detail in rpc_status.from_call(error).details:
        for kind in (ErrorInfo, RequestInfo, RetryInfo):
            if detail.Unpack(message := kind()):
                found[kind.__name__] = message
    return found


class Forever:
    """Answers never; tells when a call has come and when it was cancelled."""

    def __init__(self) -> None:
        self.come, self.gone = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: Any, context: Any) -> str:
        self.come.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.gone.set()
            raise
        return ""


def test_every_byte_is_passed_on() -> None:
    """Replies through the gateway are those of the server itself."""
    image = image_pb2.ImageSource(data=a_picture())
    request = restorer_pb2.RestoreRequest(image=image)
    stream = restorer_pb2.RestoreStreamRequest(image=image, previews=True)
    info = restorer_pb2.RestorerServiceInfoRequest()

    async def asked(address: str) -> list[Any]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = RestorerServiceStub(channel)
            events = [event async for event in stub.RestoreStream(stream)]
            return [await stub.Restore(request), await stub.Info(info), *events]

    async def scenario(upstream: str) -> None:
        async with gateway(upstream) as (address, _):
            through, straight = await asked(address), await asked(upstream)
        assert through == straight
        assert len(through) == 2 + 4 and through[0].result.image.data

    with running_server(SmallRestorer()) as restorer:
        asyncio.run(scenario(restorer.address))


def test_a_stream_is_passed_on_as_it_comes() -> None:
    gate = asyncio.Semaphore(1)

    async def answer(request: Any, context: Any) -> str:
        await gate.acquire()
        return "one more"

    async def scenario() -> None:
        async with fronted(Answering(answer)) as stub:
            call = stub.RestoreStream(a_request())
            for _ in range(3):
                reply = await asyncio.wait_for(call.read(), 10)
                assert reply.result.report.caption == "one more"
                gate.release()
            assert await call.read() is grpc.aio.EOF

    asyncio.run(scenario())


def test_tls_and_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway")
    file = tmp_path / "tokens"
    file.write_text(f"anna:{digest('secret')}\n")
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())

    callers: list[Any] = []

    async def note(request: Any, context: Any) -> str:
        callers.append(dict(context.invocation_metadata())[CALLER])
        return "hello"

    def sent(token: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {token}"), (CALLER, "eve"))

    async def scenario() -> dict[str, float]:
        async with (
            serving(Answering(note)) as (upstream, _),
            gateway(upstream, tls_cert=cert, tls_key=key, token_file=file, metrics_port=0) as (
                address,
                server,
            ),
            grpc.aio.secure_channel(address, credentials) as channel,
            grpc.aio.insecure_channel(address) as plain,
        ):
            stub: Any = RestorerServiceStub(channel)
            reply = await stub.Restore(a_request(), metadata=sent("secret"))
            assert reply.result.report.caption == "hello"
            missing = await failure(stub.Restore(a_request("r-1")))
            wrong = await failure(stub.RestoreStream(a_request(), metadata=sent("wrong")))
            for error, told in ((missing, "No token was sent"), (wrong, "not known here")):
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                assert told in (error.details() or "")
                assert details(error)["ErrorInfo"].reason == "UnauthenticatedError"

            async def silent() -> AsyncIterator[bytes]:
                await asyncio.sleep(60)
                yield b""

            # The refusal does not wait for the message: a stranger cannot make the gateway hold pictures.
            waiting: Any = channel.stream_unary(f"/{SERVICE}/Restore")
            refused = await asyncio.wait_for(failure(waiting(silent())), 10)
            assert refused.code() is grpc.StatusCode.UNAUTHENTICATED

            health = health_pb2_grpc.HealthStub(channel)
            status = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
            assert status.status == health_pb2.HealthCheckResponse.SERVING

            # One that lasts would hold a place, of which strangers are to have none.
            watch = await failure(health.Watch(health_pb2.HealthCheckRequest(service=SERVICE)))
            assert watch.code() is grpc.StatusCode.UNAUTHENTICATED
            known = health.Watch(
                health_pb2.HealthCheckRequest(service=SERVICE), metadata=sent("secret")
            )
            assert (await known.read()).status == health_pb2.HealthCheckResponse.SERVING
            known.cancel()

            file.write_text(f"bert:{digest('other')}\n")
            await stub.Restore(a_request(), metadata=sent("other"))
            gone = await failure(stub.Restore(a_request(), metadata=sent("secret")))
            assert gone.code() is grpc.StatusCode.UNAUTHENTICATED
            without: Any = RestorerServiceStub(plain)
            refused = await failure(without.Restore(a_request(), metadata=sent("other")))
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
            return await asyncio.to_thread(scraped, server.metrics_address)

    caplog.set_level(logging.INFO, logger="vlmir.calls")
    metrics = asyncio.run(scenario())
    counted = f'vlmir_requests_total{{code="%s",method="Restore",service="{SERVICE}"}}'
    assert metrics[counted % "OK"] == 2 and metrics[counted % "UNAUTHENTICATED"] == 3
    assert metrics["vlmir_queue_depth"] == 0
    lines = [record.getMessage() for record in caplog.records]
    assert callers == ["anna", "bert"]
    assert sum("caller=anna" in line for line in lines) == 1
    assert sum("caller=bert" in line for line in lines) == 1
    assert not any(token in caplog.text for token in ("secret", "Bearer wrong"))


def test_the_upstream_hears_how_much_time_there_is_and_who_asks() -> None:
    heard: list[dict[str, Any]] = []

    async def note(request: Any, context: Any) -> str:
        heard.append({**dict(context.invocation_metadata()), "left": context.time_remaining()})
        return request_id.get()

    async def scenario() -> list[str]:
        async with fronted(Answering(note), limit_s=30) as stub:
            asked = [
                (a_request("r-1"), {"timeout": 5}),
                (
                    a_request(),
                    {"metadata": ((REQUEST_ID, "r-2"), (TIME_BUDGET, "1"), (CALLER, "eve"))},
                ),
                (a_request(), {"metadata": (("traceparent", TRACEPARENT), ("x", "y"))}),
            ]
            return [await _done(stub.Restore(request, **how)) for request, how in asked]

    ids = asyncio.run(scenario())
    assert ids[:2] == ["r-1", "r-2"] and len(ids[2]) == 32
    first, second, third = heard
    assert 4000 < int(first[TIME_BUDGET]) <= 5000 and 4 < first["left"] <= 5
    # No deadline: the gateway's own; and callers cannot speak in the gateway's name.
    assert 29_000 < int(second[TIME_BUDGET]) <= 30_000 and 29 < second["left"] <= 30
    assert [call[REQUEST_ID] for call in heard] == ids
    assert not any(CALLER in call for call in heard)  # without tokens nobody knows
    assert third["traceparent"] == TRACEPARENT
    assert "traceparent" not in first and not any("x" in call for call in heard)


@pytest.mark.parametrize("method", ["Restore", "RestoreStream"])
def test_the_gateways_limit_ends_a_call_and_the_work_behind_it(method: str) -> None:
    async def scenario() -> grpc.aio.AioRpcError:
        forever = Forever()
        async with fronted(Answering(forever), limit_s=0.3) as stub:
            error = await failure(getattr(stub, method)(a_request("r-1")))
            await asyncio.wait_for(forever.gone.wait(), 10)
            return error

    error = asyncio.run(scenario())
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details(error)["ErrorInfo"].reason == "DeadlineError"
    assert details(error)["RequestInfo"].request_id == "r-1"


@pytest.mark.parametrize("method", ["Restore", "RestoreStream"])
def test_when_the_caller_goes_the_upstream_stops(method: str) -> None:
    async def scenario() -> None:
        forever = Forever()
        async with fronted(Answering(forever)) as stub:
            call = getattr(stub, method)(a_request())
            reading = asyncio.ensure_future(call.read() if method == "RestoreStream" else call)
            await asyncio.wait_for(forever.come.wait(), 10)
            call.cancel()
            await asyncio.wait_for(forever.gone.wait(), 10)
            with pytest.raises((asyncio.CancelledError, grpc.RpcError)):
                await reading

    asyncio.run(scenario())


def test_calls_wait_for_their_turn_and_one_too_many_is_refused() -> None:
    gate, inside = asyncio.Semaphore(0), list[int]()

    async def answer(request: Any, context: Any) -> str:
        inside.append(1)
        await gate.acquire()
        return "done"

    async def scenario() -> None:
        async with fronted(Answering(answer), workers=1, queue=1) as stub:
            calls = [asyncio.ensure_future(_done(stub.Restore(a_request()))) for _ in range(2)]
            await asyncio.sleep(0.3)
            assert len(inside) == 1
            error = await failure(stub.Restore(a_request()))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details(error)["RetryInfo"].retry_delay.ToNanoseconds() > 0
            gate.release()
            gate.release()
            assert await asyncio.gather(*calls) == ["done", "done"]
            # Nothing is left behind by those that were refused.
            gate.release()
            assert await _done(stub.Restore(a_request())) == "done"

    asyncio.run(scenario())


class Telling(Answering):
    """Says who it is, too."""

    async def Info(self, request: Any, context: Any) -> restorer_pb2.RestorerServiceInfoResponse:
        return restorer_pb2.RestorerServiceInfoResponse(labels=["noisy"])


def test_short_methods_do_not_wait_behind_long_ones() -> None:
    async def scenario() -> None:
        forever = Forever()
        async with fronted(Telling(forever), workers=1, queue=1) as stub:
            calls = [
                stub.Restore(a_request(), timeout=20),
                stub.RestoreStream(a_request(), timeout=20),
            ]
            await asyncio.wait_for(forever.come.wait(), 10)
            for _ in range(3):
                info = await stub.Info(restorer_pb2.RestorerServiceInfoRequest(), timeout=5)
                assert list(info.labels) == ["noisy"]
            full = await failure(stub.Restore(a_request()))
            assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for call in calls:
                call.cancel()

    asyncio.run(scenario())


def test_time_runs_out_while_waiting_too() -> None:
    async def scenario() -> None:
        forever = Forever()
        async with fronted(Answering(forever), workers=1, queue=1, limit_s=0.3) as stub:
            first = asyncio.ensure_future(failure(stub.Restore(a_request("r-1"), timeout=10)))
            await asyncio.wait_for(forever.come.wait(), 10)
            forever.come.clear()
            second = await failure(stub.Restore(a_request("r-2"), timeout=0.1))
            assert second.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert (await first).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert not forever.come.is_set()
            third = await failure(stub.Restore(a_request("r-3"), timeout=10))
            assert details(third)["RequestInfo"].request_id == "r-3"
            assert forever.come.is_set()

    asyncio.run(scenario())


async def _done(call: Any) -> str:
    return str((await call).result.report.caption)


def test_a_message_that_is_too_big_is_refused() -> None:
    async def scenario() -> grpc.aio.AioRpcError:
        async with fronted(Answering(), max_bytes=1000) as stub:
            await stub.Restore(a_request(data=bytes(1000)))
            return await failure(stub.Restore(a_request(data=bytes(2_000_000))))

    error = asyncio.run(scenario())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (error.details() or "")


FAULTS = [
    (OptionError("Unknown solver; take another."), grpc.StatusCode.INVALID_ARGUMENT),
    (LimitError("Zu groß; höchstens 10 Megapixel."), grpc.StatusCode.INVALID_ARGUMENT),
    (OverloadedError("full", retry_after_s=2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
]


def _check_own(error: grpc.aio.AioRpcError, fault: Exception, code: grpc.StatusCode) -> None:
    assert (error.code(), error.details()) == (code, str(fault))
    found = details(error)
    assert found["ErrorInfo"] == ErrorInfo(reason=type(fault).__name__, domain="vlmir")
    assert found["RequestInfo"].request_id == "r-1"
    if isinstance(fault, OverloadedError):
        assert found["RetryInfo"].retry_delay.ToNanoseconds() == 2_500_000_000


@pytest.mark.parametrize("method", ["Restore", "RestoreStream"])
@pytest.mark.parametrize(("fault", "code"), FAULTS)
def test_the_upstreams_errors_arrive_whole(
    method: str, fault: Exception, code: grpc.StatusCode
) -> None:
    async def answer(request: Any, context: Any) -> str:
        raise fault

    async def scenario() -> grpc.aio.AioRpcError:
        async with fronted(Answering(answer)) as stub:
            return await failure(getattr(stub, method)(a_request("r-1")))

    _check_own(asyncio.run(scenario()), fault, code)


@pytest.mark.parametrize("method", ["Restore", "RestoreStream"])
@pytest.mark.parametrize(("fault", "code"), FAULTS)
def test_so_they_do_from_a_server_that_has_only_text(
    method: str, fault: Exception, code: grpc.StatusCode
) -> None:
    async def answer(request: Any, context: Any) -> str:
        await context.abort(code, to_details(to_status(fault, "r-1")))
        return ""

    async def scenario() -> grpc.aio.AioRpcError:
        async with fronted_like_ray(Answering(answer)) as stub:
            return await failure(getattr(stub, method)(a_request("r-1")))

    _check_own(asyncio.run(scenario()), fault, code)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (UnavailableError("Triton at 10.0.0.7:8001 is away"), "a part of the restorer cannot be"),
        (UnavailableError("The store at http://minio.internal refuses"), "try again soon"),
        (BundleError("/srv/minio.internal has no preset"), "weights are not in order; its log"),
        (VlmirError("minio.internal"), "internal error; the server's log tells more about request"),
        (ReleaseError("Release 'a' is not held here; ask for 'b'."), "ask for 'b'"),
    ],
)
def test_insides_are_not_told_to_the_caller(
    fault: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: Any, context: Any) -> str:
        raise fault

    async def scenario() -> grpc.aio.AioRpcError:
        async with fronted(Answering(answer)) as stub:
            return await failure(stub.Restore(a_request("r-1")))

    caplog.set_level(logging.INFO, logger="vlmir")
    error = asyncio.run(scenario())
    assert told in (error.details() or "")
    assert "10.0.0.7" not in repr(error) and "minio.internal" not in repr(error)
    found = details(error)
    assert found["RequestInfo"].request_id == "r-1"
    if isinstance(fault, UnavailableError):
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert found["ErrorInfo"].reason == type(fault).__name__
    gateways = [r.getMessage() for r in caplog.records if r.name == "vlmir.gateway"]
    hidden = type(fault) in (UnavailableError, BundleError)
    assert any(str(fault) in line for line in gateways) == hidden


@pytest.mark.parametrize(
    ("code", "text", "expected", "told"),
    [
        ("INTERNAL", 'Traceback … File "/secret.py"', "INTERNAL", "internal error"),
        ("UNKNOWN", "secret", "INTERNAL", "request r-1"),
        ("INTERNAL", "The actor died unexpectedly, ip 10.0.0.7, secret", "UNAVAILABLE", "again"),
        ("NOT_FOUND", "Application 'secret' not found", "UNAVAILABLE", "reached"),
        ("RESOURCE_EXHAUSTED", "dropped due to backpressure, secret", "RESOURCE_EXHAUSTED", "full"),
        ("RESOURCE_EXHAUSTED", "message larger than max secret", "INVALID_ARGUMENT", "size"),
        ("CANCELLED", "secret", "CANCELLED", "cancelled"),
        ("UNIMPLEMENTED", "secret", "UNIMPLEMENTED", "no such method"),
        # A status that claims to be another than it is.
        ("INTERNAL", "secret" + to_details(to_status(OptionError(""), "")), "INTERNAL", "internal"),
    ],
)
def test_strange_errors_are_told_in_our_words(
    code: str, text: str, expected: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: Any, context: Any) -> str:
        await context.abort(grpc.StatusCode[code], text)
        return ""

    async def scenario() -> grpc.aio.AioRpcError:
        async with fronted_like_ray(Answering(answer)) as stub:
            return await failure(stub.Restore(a_request("r-1")))

    error = asyncio.run(scenario())
    assert error.code().name == expected and told in (error.details() or "")
    assert "secret" not in repr(error) and "10.0.0.7" not in repr(error)
    assert "secret" in caplog.text
    if expected == "RESOURCE_EXHAUSTED":
        assert details(error)["RetryInfo"].retry_delay.ToNanoseconds() == 1e9


def test_health_is_that_of_the_upstream() -> None:
    async def becomes(health: health_pb2_grpc.HealthStub, status: int) -> bool:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        for _ in range(200):
            if (await health.Check(request)).status == status:
                return True
            await asyncio.sleep(0.05)
        return False

    async def scenario() -> None:
        status = health_pb2.HealthCheckResponse
        async with serving(Answering()) as (upstream, server):
            port = int(upstream.rpartition(":")[2])
            entered = gateway(upstream)
            address, _ = await entered.__aenter__()
            channel = grpc.aio.insecure_channel(address)
            health, stub = health_pb2_grpc.HealthStub(channel), RestorerServiceStub(channel)
            assert await becomes(health, status.SERVING)
            await server.set_serving(False)
            assert await becomes(health, status.NOT_SERVING)
            await server.set_serving(True)
            assert await becomes(health, status.SERVING)
        assert await becomes(health, status.NOT_SERVING)
        error = await failure(stub.Restore(a_request()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert str(port) not in (error.details() or "")
        assert details(error)["ErrorInfo"].reason == "UnavailableError"
        async with serving(Answering(), port=port):
            assert await becomes(health, status.SERVING)
            assert await _done(stub.Restore(a_request())) == "hello"
        await channel.close()
        await entered.__aexit__(None, None, None)

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["Restore", "RestoreStream"])
def test_a_call_waits_a_moment_for_an_upstream_that_starts(method: str) -> None:
    async def started_late(address: str, call: Any) -> list[Any]:
        await asyncio.sleep(0.5)
        assert not call.done()
        async with serving(Answering(), port=int(address.rpartition(":")[2])):
            return [reply async for reply in call] if method == "RestoreStream" else [await call]

    async def scenario() -> None:
        upstream = f"127.0.0.1:{free_port()}"
        async with (
            gateway(upstream) as (address, _),
            grpc.aio.insecure_channel(address) as channel,
        ):
            call = getattr(RestorerServiceStub(channel), method)(a_request())
            replies = await started_late(upstream, call)
            assert replies[-1].result.report.caption == "hello"
            # Where the time is shorter than the patience, it is the time that is over.
            error = await failure(RestorerServiceStub(channel).Restore(a_request(), timeout=0.3))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["Restore", "RestoreStream"])
def test_a_trace_goes_through_the_gateway(method: str) -> None:
    exporter = InMemorySpanExporter()
    tracing.start("test", SimpleSpanProcessor(exporter))

    async def scenario() -> None:
        async with fronted(Answering()) as stub:
            call = getattr(stub, method)(a_request(), metadata=(("traceparent", TRACEPARENT),))
            _ = [reply async for reply in call] if method == "RestoreStream" else await call
            await asyncio.sleep(0.05)

    try:
        asyncio.run(scenario())
    finally:
        tracing.stop()
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
    inner = next(
        s
        for s in spans.values()
        if s.parent and s.parent.span_id in spans and s.kind is SpanKind.SERVER
    )
    chain = [inner]
    while (parent := chain[-1].parent) is not None and parent.span_id in spans:
        chain.append(spans[parent.span_id])
    assert [span.kind for span in chain] == [SpanKind.SERVER, SpanKind.CLIENT, SpanKind.SERVER]
    assert f"{chain[-1].parent.span_id:016x}" == TRACEPARENT.split("-")[2]  # type: ignore[union-attr]
    assert len(spans) == 3  # health checks are not among them


@pytest.fixture
def upstream() -> Iterator[str]:
    with running_server(SmallRestorer()) as restorer:
        yield restorer.address


def test_the_gateway_as_a_process(upstream: str) -> None:
    command = [sys.executable, "-m", "services.gateway", "--port", "0", "--upstream", upstream]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(f"serving {upstream} on 127.0.0.1:"), line
            with grpc.insecure_channel(line.split()[-1]) as channel:
                stub: Any = RestorerServiceStub(channel)
                image = image_pb2.ImageSource(data=a_picture())
                reply = stub.Restore(restorer_pb2.RestoreRequest(image=image), timeout=20)
            assert reply.result.image.width == 30
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("flags", "status", "told"),
    [
        ([], 2, "error: upstream: "),
        (
            ["--upstream", "x:1", "--token-file", "/no/such/file"],
            1,
            "error: the tokens in /no/such",
        ),
        (["--upstream", "x:1", "--tls-cert", "/no/cert", "--tls-key", "/no/key"], 1, "/no/cert"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(flags: list[str], status: int, told: str) -> None:
    command = [sys.executable, "-m", "services.gateway", "--port", "0", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == status and told in done.stderr
    assert "Traceback" not in done.stderr
