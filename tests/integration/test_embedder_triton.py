"""The embedder service before a real Triton, where there is one; see ``test_triton.py`` for how it is found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.common.telemetry import tracing
from services.embedder.server import SERVICE, running
from services.embedder.settings import EmbedderSettings
from tests.integration.calls import (
    NOT_SERVING,
    SERVING,
    becomes,
    health,
    refusal,
    retry_delay,
)
from tests.integration.test_embedder_service import asked, assert_librarys, picture
from tests.integration.triton import RealTriton, needs_triton, running_triton, write_embedder
from tests.small import CAPTIONS
from vlmir.bundle import load_bundle
from vlmir.errors import UnavailableError
from vlmir.parts import build_embedder
from vlmir.v1.embedder_pb2 import EmbedderServiceInfoRequest, EmbedTextRequest
from vlmir.v1.embedder_pb2_grpc import EmbedderServiceStub
from vlmir.vlm.embedder import ClipEmbedder

pytestmark = needs_triton


@pytest.fixture(scope="module")
def triton(
    small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealTriton]:
    repository = tmp_path_factory.mktemp("models")
    write_embedder(repository, small_bundle_folder, version=3)
    with running_triton(repository, tmp_path_factory.mktemp("triton")) as found:
        yield found


@pytest.fixture(scope="module")
def small(small_bundle_folder: Path) -> ClipEmbedder:
    return build_embedder(load_bundle(small_bundle_folder))


def serving(
    bundle: Path,
    triton: RealTriton,
    test: Callable[[EmbedderServiceStub, grpc.aio.Channel], Awaitable[None]],
    **settings: Any,
) -> None:
    """Runs a test against a server in this process."""

    async def whole() -> None:
        chosen = EmbedderSettings(
            port=0, bundle=str(bundle), triton=triton.address, probe_s=0.1, **settings
        )
        async with (
            running(chosen) as address,
            grpc.aio.insecure_channel(address) as channel,
            asyncio.timeout(60),
        ):
            await test(EmbedderServiceStub(channel), channel)

    asyncio.run(whole())


def test_triton_gives_the_librarys_numbers(
    triton: RealTriton, small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    async def test(stub: EmbedderServiceStub, channel: grpc.aio.Channel) -> None:
        info = await assert_librarys(stub, small, [picture(n) for n in range(8)], CAPTIONS)
        assert info.service.device == f"{triton.address}, triton"

    serving(small_bundle_folder, triton, test)


def test_a_trace_goes_on_to_triton_and_trials_are_left_out(
    triton: RealTriton, small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    exporter = InMemorySpanExporter()
    tracing.start("test", SimpleSpanProcessor(exporter))

    async def test(stub: EmbedderServiceStub, channel: grpc.aio.Channel) -> None:
        await stub.EmbedImage(asked(small.view_maker, picture(0)))
        await stub.EmbedText(EmbedTextRequest(text="a dog"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.EmbedImage(asked(small.view_maker, picture(0)), timeout=0.001)
        await asyncio.sleep(0.3)  # some trials

    try:
        serving(small_bundle_folder, triton, test)
    finally:
        tracing.stop()
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
    calls = [span for span in spans.values() if span.name.endswith("/ModelInfer")]
    assert {span.kind for span in calls} == {SpanKind.CLIENT}
    asking = [spans[span.parent.span_id].name.rpartition("/")[2] for span in calls if span.parent]
    assert sorted(set(asking)) == ["EmbedImage", "EmbedText"] and len(asking) == len(calls)
    # Even the one whose caller gave up came to its end, if it was begun at all.
    assert len(calls) >= 2
    assert {(span.attributes or {})["rpc.grpc.status_code"] for span in calls} == {0}


def test_who_gives_up_leaves_triton_to_its_end(
    triton: RealTriton, small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    """Triton can crash when a request is cancelled; until it has answered, the request keeps its place."""

    async def test(stub: EmbedderServiceStub, channel: grpc.aio.Channel) -> None:
        async def inside(count: int) -> None:
            while (await stub.Info(EmbedderServiceInfoRequest())).service.queue_depth != count:
                await asyncio.sleep(0.01)

        request, answered = asked(small.view_maker, picture(0)), triton.inferences()
        with triton.asleep():
            waiting = [asyncio.ensure_future(stub.EmbedImage(request)) for _ in range(2)]
            await inside(2)
            began = time.monotonic()
            late = EmbedTextRequest(text="a dog", time_budget_ms=200)
            assert (await refusal(stub.EmbedText(late)))[0] == "DEADLINE_EXCEEDED"
            assert time.monotonic() - began < 5
            waiting.pop().cancel()
            assert await retry_delay(stub.EmbedImage(request)) > 0
            await inside(3)
        await waiting[0]
        await inside(0)
        assert triton.inferences() >= answered + 3

    serving(small_bundle_folder, triton, test, workers=1, queue=2)
    assert triton.cancelled() == 0


def test_a_dead_model_is_told_by_health_and_loaded_anew(
    triton: RealTriton, small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    async def test(stub: EmbedderServiceStub, channel: grpc.aio.Channel) -> None:
        assert await health(channel, SERVICE) == SERVING
        triton.kill_models()
        code, sentence = await refusal(stub.EmbedText(EmbedTextRequest(text="a dog")))
        assert code == "UNAVAILABLE" and "clip_text" in sentence
        await becomes(channel, SERVICE, NOT_SERVING)
        await becomes(channel, SERVICE, SERVING)
        await assert_librarys(stub, small, [picture(0)], CAPTIONS)

    serving(small_bundle_folder, triton, test)


def test_a_dead_triton_is_unavailable_until_it_is_back(
    triton: RealTriton, small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    async def test(stub: EmbedderServiceStub, channel: grpc.aio.Channel) -> None:
        await asyncio.to_thread(triton.stop)
        began = time.monotonic()
        code, sentence = await refusal(stub.EmbedImage(asked(small.view_maker, picture(0))))
        assert time.monotonic() - began < 5
        assert code == "UNAVAILABLE" and triton.address in sentence
        await becomes(channel, SERVICE, NOT_SERVING)
        await asyncio.to_thread(triton.start)
        await becomes(channel, SERVICE, SERVING)
        await assert_librarys(stub, small, [picture(0)], CAPTIONS)

    serving(small_bundle_folder, triton, test)


def test_a_triton_with_another_embedder_is_refused(
    triton: RealTriton, imported_bundle_folder: Path
) -> None:
    async def never(stub: EmbedderServiceStub, channel: grpc.aio.Channel) -> None:
        raise AssertionError

    with pytest.raises(UnavailableError, match="another embedder"):
        serving(imported_bundle_folder, triton, never)


def test_a_triton_that_starts_later_is_waited_for(
    triton: RealTriton, small_bundle_folder: Path
) -> None:
    async def never(stub: EmbedderServiceStub, channel: grpc.aio.Channel) -> None:
        raise AssertionError

    async def test(stub: EmbedderServiceStub, channel: grpc.aio.Channel) -> None:
        assert await health(channel, SERVICE) == SERVING

    triton.stop()
    with pytest.raises(UnavailableError, match="cannot be reached; is it running"):
        serving(small_bundle_folder, triton, never, triton_wait_s=0)
    with ThreadPoolExecutor() as pool:
        started = pool.submit(triton.start)
        serving(small_bundle_folder, triton, test)
        started.result()
