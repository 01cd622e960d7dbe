"""The captioner over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.captioner.server import SERVICE, CaptionerSettings, running
from tests.integration.calls import (
    NOT_SERVING,
    PATIENCE_S,
    SERVING,
    Gate,
    described,
    fails,
    free_port,
    health,
    metrics,
    process,
    refusal,
    retry_delay,
    until,
)
from vlmir.bundle import load_bundle
from vlmir.image import Image, encode
from vlmir.parts import build_captioner
from vlmir.v1 import image_pb2
from vlmir.v1.captioner_pb2 import CaptionerServiceInfoRequest, CaptionRequest, CaptionResponse
from vlmir.v1.captioner_pb2_grpc import CaptionerServiceStub
from vlmir.vlm.captioner import BlipCaptioner


def picture(seed: int, side: int = 48) -> Image:
    """A coarse mosaic of random colours."""
    levels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.from_levels(np.kron(levels, np.ones((side // 6, side // 6, 1), np.uint8)))


def request(image: Image | bytes, **fields: Any) -> CaptionRequest:
    data = encode(image) if isinstance(image, Image) else image
    return CaptionRequest(image=image_pb2.ImageSource(data=data), **fields)


def serving(
    bundle: Path | str, test: Callable[[CaptionerServiceStub], Awaitable[None]], **settings: Any
) -> None:
    """Runs a test against a server in this process."""

    async def whole() -> None:
        chosen = CaptionerSettings(port=0, bundle=str(bundle), **settings)
        async with (
            running(chosen) as address,
            grpc.aio.insecure_channel(address) as channel,
            asyncio.timeout(60),
        ):
            await test(CaptionerServiceStub(channel))

    asyncio.run(whole())


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Stands before the network once the server is warm."""
    found = Gate(BlipCaptioner.caption_batch)

    def closed(_: BlipCaptioner, pixels: Any) -> str:
        return ""  # instead of warming up through the gate

    monkeypatch.setattr(BlipCaptioner, "caption", closed)
    monkeypatch.setattr(BlipCaptioner, "caption_batch", found)
    return found


def test_captions_are_the_librarys_alone_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped weights, whose captions differ in length: shorter ones are padded in a batch."""
    from skimage import data

    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    images = [Image.from_levels(np.ascontiguousarray(photo)) for photo in photos]
    library = build_captioner(load_bundle("tiny"))
    wanted = [library.caption(image.pixels) for image in images]
    assert len({len(caption.split()) for caption in wanted}) > 1
    gate = Gate(BlipCaptioner.caption_batch, open_=True)

    async def test(stub: CaptionerServiceStub) -> None:
        alone = await stub.Caption(request(images[0]))
        assert alone.caption == wanted[0]
        assert alone.release == load_bundle("tiny").release
        assert set(alone.milliseconds) == {"decode", "caption"}
        replies = await asyncio.gather(*(stub.Caption(request(image)) for image in images))
        assert [reply.caption for reply in replies] == wanted
        # A caller may send what the captioner sees and no more, if it keeps enough bits.
        view = library.view(images[1].pixels)[0].permute(1, 2, 0).numpy()
        small = Image(pixels=np.ascontiguousarray(view), bit_depth=16)
        assert (await stub.Caption(request(small))).caption == wanted[1]

    monkeypatch.setattr(BlipCaptioner, "caption_batch", gate)
    serving("tiny", test, captions=0)
    assert sum(gate.batches) == 7  # with the warm-up
    assert len(gate.batches) < 7


def test_what_waits_is_computed_together(gate: Gate, small_bundle_folder: Path) -> None:
    async def test(stub: CaptionerServiceStub) -> None:
        first = asyncio.ensure_future(stub.Caption(request(picture(0))))
        await until(lambda: gate.batches == [1])
        others = [asyncio.ensure_future(stub.Caption(request(picture(n)))) for n in range(1, 6)]
        while (await stub.Info(CaptionerServiceInfoRequest())).service.queue_depth < 6:
            await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(first, *others)

    serving(small_bundle_folder, test, batch=4)
    assert sum(gate.batches) == 6 and gate.batches[0] == 1 and max(gate.batches) <= 4
    assert len(gate.batches) <= 4  # the last ones may have been decoding yet


def test_a_picture_seen_before_needs_no_network(gate: Gate, small_bundle_folder: Path) -> None:
    gate.open()

    async def test(stub: CaptionerServiceStub) -> None:
        async def caption(seed: int, **options: Any) -> CaptionResponse:
            return await stub.Caption(request(encode(picture(seed), **options)))

        first = await caption(1)
        again = await caption(1, format="tiff")
        assert (again.caption, again.release) == (first.caption, first.release)
        assert len(gate.batches) == 1
        await caption(2)
        await caption(1)
        assert len(gate.batches) == 2
        await caption(3)  # forgets 2, which was asked for longest ago
        await caption(1)
        assert len(gate.batches) == 3
        await caption(2)
        assert len(gate.batches) == 4
        counted = await asyncio.to_thread(metrics, port)
        assert counted["vlmir_cache_hits_total"] == 3
        assert counted["vlmir_cache_misses_total"] == 4
        assert counted['vlmir_batch_items_total{kind="image"}'] == 4
        assert counted["vlmir_queue_depth"] == 0

    port = free_port()
    serving(small_bundle_folder, test, captions=2, metrics_port=port)


def test_bad_pictures_are_refused_in_a_sentence(small_bundle_folder: Path) -> None:
    whole = encode(picture(0))
    by_uri = CaptionRequest(image=image_pb2.ImageSource(uri="s3://bucket/key"))
    cases: list[tuple[CaptionRequest, str]] = [
        (by_uri, "send the picture's bytes"),
        (CaptionRequest(), "No picture was sent"),
        (request(whole[: len(whole) // 2]), "truncated"),
        (request(b"GIF89a"), "PNG"),
        (request(picture(0, side=96)), "at most 5000 are taken"),
        (request(whole + bytes(20_000)), "at most 20000 are taken"),
        (request(whole, request_id="no spaces"), "request_id"),
    ]

    async def test(stub: CaptionerServiceStub) -> None:
        for asked, said in cases:
            code, sentence = await refusal(stub.Caption(asked))
            assert code == "INVALID_ARGUMENT" and said in sentence, sentence
        await stub.Caption(request(whole))

    serving(small_bundle_folder, test, max_pixels=5000, max_bytes=20_000)


def test_another_release_is_not_answered_for(small_bundle_folder: Path) -> None:
    async def test(stub: CaptionerServiceStub) -> None:
        code, sentence = await refusal(stub.Caption(request(picture(0), release="small-9")))
        assert code == "UNAVAILABLE" and "'small-1'" in sentence
        assert (await stub.Caption(request(picture(0), release="small-1"))).release == "small-1"

    serving(small_bundle_folder, test)


def test_who_has_gone_is_not_computed_for(gate: Gate, small_bundle_folder: Path) -> None:
    async def test(stub: CaptionerServiceStub) -> None:
        async def depth() -> int:
            return (await stub.Info(CaptionerServiceInfoRequest())).service.queue_depth

        first = asyncio.ensure_future(stub.Caption(request(picture(0))))
        await until(lambda: gate.batches == [1])
        gone = asyncio.ensure_future(stub.Caption(request(picture(1))))
        while await depth() < 2:
            await asyncio.sleep(0.01)
        gone.cancel()
        late = stub.Caption(request(picture(2), time_budget_ms=150))
        assert (await refusal(late))[0] == "DEADLINE_EXCEEDED"
        late = stub.Caption(request(picture(3)), timeout=0.15)
        assert (await refusal(late))[0] == "DEADLINE_EXCEEDED"
        while await depth() > 1:
            await asyncio.sleep(0.01)
        gate.open()
        await first
        await stub.Caption(request(picture(4)))

    serving(small_bundle_folder, test)
    assert gate.batches == [1, 1]


def test_the_servers_own_limit_holds(gate: Gate, small_bundle_folder: Path) -> None:
    async def test(stub: CaptionerServiceStub) -> None:
        code, sentence = await refusal(stub.Caption(request(picture(0))))
        assert code == "DEADLINE_EXCEEDED" and "--limit-s" in sentence
        gate.open()

    serving(small_bundle_folder, test, limit_s=0.1)


def test_one_too_many_is_told_when_to_come_back(gate: Gate, small_bundle_folder: Path) -> None:
    async def test(stub: CaptionerServiceStub) -> None:
        inside = [asyncio.ensure_future(stub.Caption(request(picture(n)))) for n in range(3)]
        await until(lambda: bool(gate.batches))
        while (await stub.Info(CaptionerServiceInfoRequest())).service.queue_depth < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert await retry_delay(stub.Caption(request(picture(4)))) > 0
        gate.open()
        await asyncio.gather(*inside)
        await stub.Caption(request(picture(4)))

    serving(small_bundle_folder, test, workers=1, queue=2)


def test_info_health_and_reflection(small_bundle_folder: Path) -> None:
    async def test() -> None:
        settings = CaptionerSettings(port=0, bundle=str(small_bundle_folder), workers=1, queue=2)
        async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:
            info = await CaptionerServiceStub(channel).Info(CaptionerServiceInfoRequest())
            assert await health(channel, SERVICE) == SERVING
            assert await asyncio.to_thread(described, address, SERVICE)
        bundle = load_bundle(small_bundle_folder)
        service = info.service
        assert (service.release, list(service.releases)) == ("small-1", ["small-1"])
        assert dict(service.digests)["captioner"] == bundle.digests["captioner"]
        assert (service.device, service.refused_release) == ("cpu", "")
        assert service.limits.max_image_pixels == settings.max_pixels
        assert (service.queue_depth, service.queue_capacity) == (0, 6)
        assert info.image_size == 32

    asyncio.run(test())


def test_it_runs_while_there_are_no_weights_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")

    async def test() -> None:
        follow = "models:/vlmir-sampler@champion"
        settings = CaptionerSettings(port=0, follow=follow, cache=tmp_path)
        async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:
            stub = CaptionerServiceStub(channel)
            assert await health(channel, SERVICE) == NOT_SERVING
            info = await stub.Info(CaptionerServiceInfoRequest())
            assert (info.service.release, info.service.device, info.image_size) == ("", "", 0)
            code, sentence = await refusal(stub.Caption(request(picture(0))))
            assert code == "UNAVAILABLE" and "No weights" in sentence

    asyncio.run(test())


def test_a_process_finishes_its_calls_when_told_to_stop(small_bundle_folder: Path) -> None:
    # Calls that are still on their way are taken for a moment.
    arguments = ("--bundle", str(small_bundle_folder), "--drain-s", "1")
    with process("services.captioner", *arguments) as (server, address):
        with grpc.insecure_channel(address) as channel:
            stub = CaptionerServiceStub(channel)
            calls = [stub.Caption.future(request(picture(n))) for n in range(8)]
            calls[0].result(20)
            server.terminate()
            assert all(call.result(20).release == "small-1" for call in calls)
        assert server.wait(PATIENCE_S) == 0


def test_a_bundle_without_a_captioner_is_told_in_one_line(imported_bundle_folder: Path) -> None:
    status, said = fails("services.captioner", "--bundle", str(imported_bundle_folder))
    assert status == 1
    assert said.startswith("error: ") and "no captioner" in said and said.count("\n") == 1
