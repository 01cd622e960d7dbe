"""The embedder over a real connection, by torch and by ONNX Runtime; Triton has a test of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.common.tensors import from_message, to_message
from services.embedder.model import MOST_CHARACTERS
from services.embedder.server import SERVICE, running
from services.embedder.settings import EmbedderSettings
from tests.integration.calls import (
    PATIENCE_S,
    SERVING,
    Gate,
    described,
    exported,
    fails,
    free_port,
    health,
    metrics,
    process,
    refusal,
    retry_delay,
    until,
)
from tests.small import CAPTIONS
from vlmir.bundle import load_bundle
from vlmir.compute import Compute
from vlmir.errors import BundleError, OptionError
from vlmir.parts import build_embedder
from vlmir.v1 import image_pb2
from vlmir.v1.embedder_pb2 import (
    RESIZE_MODE_CROP,
    RESIZE_MODE_SQUASH,
    EmbedderServiceInfoRequest,
    EmbedderServiceInfoResponse,
    EmbedImageRequest,
    EmbedImageResponse,
    EmbedTextRequest,
)
from vlmir.v1.embedder_pb2_grpc import EmbedderServiceStub
from vlmir.vlm.embedder import ClipEmbedder, ImageEmbedding, ViewMaker

Pixels = np.ndarray[Any, np.dtype[np.float32]]


def picture(seed: int, height: int = 70, width: int = 90) -> Pixels:
    """Noise over a ramp; its strength depends on the seed."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    noise = random.normal(0, 0.05 * (1 + seed % 5), (height, width, 3))
    return np.clip(ramp + noise, 0, 1).astype(np.float32)


def view_maker(info: EmbedderServiceInfoResponse) -> ViewMaker:
    """All that a caller needs, from what the service says."""
    return ViewMaker(
        image_size=info.image_size,
        resize="crop" if info.resize == RESIZE_MODE_CROP else "squash",
        detail=info.detail,
        window=info.window if info.HasField("window") else None,
    )


def asked(views: ViewMaker, pixels: Pixels, **fields: Any) -> EmbedImageRequest:
    return EmbedImageRequest(pixels=to_message(views(pixels).numpy()), **fields)


def assert_same(got: EmbedImageResponse, wanted: ImageEmbedding) -> None:
    for message, vector in (
        (got.image_embedding, wanted.f_I),
        (got.degradation_embedding, wanted.f_D),
    ):
        array = from_message(message, shape=(None,))
        np.testing.assert_allclose(array, vector.numpy(), rtol=1e-5, atol=1e-5)
    assert dict(got.degradations) == pytest.approx(wanted.degradations, abs=1e-5)


async def assert_librarys(
    stub: EmbedderServiceStub,
    library: ClipEmbedder,
    pictures: Sequence[Pixels],
    captions: Sequence[str],
) -> EmbedderServiceInfoResponse:
    """Pictures and captions alone and all at once give what the library gives."""
    info = await stub.Info(EmbedderServiceInfoRequest())
    views = view_maker(info)
    wanted = [library.embed_image(pixels) for pixels in pictures]
    assert_same(await stub.EmbedImage(asked(views, pictures[0])), wanted[0])
    replies = await asyncio.gather(*(stub.EmbedImage(asked(views, p)) for p in pictures))
    for reply, embedding in zip(replies, wanted, strict=True):
        assert_same(reply, embedding)
    texts = await asyncio.gather(*(stub.EmbedText(EmbedTextRequest(text=c)) for c in captions))
    got = [from_message(text.text_embedding, shape=(None,)) for text in texts]
    np.testing.assert_allclose(got, library.embed_captions(captions), rtol=1e-5, atol=1e-5)
    return info


def serving(
    bundle: Path | str, test: Callable[[EmbedderServiceStub], Awaitable[None]], **settings: Any
) -> None:
    """Runs a test against a server in this process."""

    async def whole() -> None:
        chosen = EmbedderSettings(port=0, bundle=str(bundle), **settings)
        async with (
            running(chosen) as address,
            grpc.aio.insecure_channel(address) as channel,
            asyncio.timeout(60),
        ):
            await test(EmbedderServiceStub(channel))

    asyncio.run(whole())


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Stands before the network; lets the warm-up through."""
    found = Gate(ClipEmbedder.see)
    found.let()
    monkeypatch.setattr(ClipEmbedder, "see", found)
    return found


@pytest.fixture(scope="module")
def onnx(small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    for graph in exported(small_bundle_folder):
        (folder / f"{graph.name}.onnx").write_bytes(graph.data)
    return folder


@pytest.fixture(scope="module")
def small(small_bundle_folder: Path) -> ClipEmbedder:
    return build_embedder(load_bundle(small_bundle_folder))


@pytest.mark.parametrize("enough", [0.0, 2.0])
def test_the_shipped_weights_give_the_librarys_numbers(
    enough: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole pictures believed, and all views asked."""
    from skimage import data

    from vlmir.degradations import degrade
    from vlmir.image.color import to_float

    photos = [to_float(photo()) for photo in (data.astronaut, data.coffee, data.chelsea)]
    damaged = [
        degrade(photo, label, seed=0, strength=0.6)
        for photo, label in zip(photos, ("noisy", "rainy", "hazy"), strict=True)
    ]
    monkeypatch.setattr("vlmir.vlm.embedder.CERTAIN", enough)
    library = build_embedder(load_bundle("tiny"), Compute.choose("cpu").dtype)

    async def test(stub: EmbedderServiceStub) -> None:
        captions = ["a dog runs on the grass .", "", "two people in the snow with a sled " * 9]
        info = await assert_librarys(stub, library, damaged, captions)
        assert info.service.device == "cpu, torch"
        assert (info.image_size, info.embedding_dim) == (160, 192)

    serving("tiny", test)


def test_onnx_runtime_gives_the_librarys_numbers(
    small_bundle_folder: Path, onnx: Path, small: ClipEmbedder
) -> None:
    async def test(stub: EmbedderServiceStub) -> None:
        info = await assert_librarys(stub, small, [picture(n) for n in range(5)], CAPTIONS)
        assert info.service.device == "cpu, onnxruntime"

    serving(small_bundle_folder, test, onnx=onnx)


def test_an_embedder_without_windows_and_detail(imported_bundle_folder: Path) -> None:
    library = build_embedder(load_bundle(imported_bundle_folder))

    async def test(stub: EmbedderServiceStub) -> None:
        info = await assert_librarys(stub, library, [picture(n) for n in range(3)], CAPTIONS)
        assert view_maker(info).shape == (1, 3, 64, 64)
        assert info.resize == RESIZE_MODE_CROP

    serving(imported_bundle_folder, test)


def test_info_is_all_that_a_caller_needs(small_bundle_folder: Path, small: ClipEmbedder) -> None:
    async def test() -> None:
        settings = EmbedderSettings(port=0, bundle=str(small_bundle_folder), workers=1, queue=2)
        async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:
            info = await EmbedderServiceStub(channel).Info(EmbedderServiceInfoRequest())
            assert await health(channel, SERVICE) == SERVING
            assert await asyncio.to_thread(described, address, SERVICE)
        assert view_maker(info) == small.view_maker
        assert tuple(info.labels) == small.labels
        assert (info.embedding_dim, info.resize) == (32, RESIZE_MODE_SQUASH)
        prototypes = from_message(info.prototypes, shape=(len(small.labels), 32))
        for label, prototype in zip(info.labels, prototypes, strict=True):
            np.testing.assert_array_equal(prototype, small.embed_label(label))
        service = info.service
        assert (service.release, list(service.releases)) == ("small-1", ["small-1"])
        digests = load_bundle(small_bundle_folder).digests
        assert service.digests["embedder"] == digests["embedder"]
        assert (service.queue_depth, service.queue_capacity) == (0, 6)

    asyncio.run(test())


def test_what_waits_is_computed_together(
    gate: Gate, small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    async def test(stub: EmbedderServiceStub) -> None:
        def embed(seed: int) -> asyncio.Future[EmbedImageResponse]:
            return asyncio.ensure_future(stub.EmbedImage(asked(small.view_maker, picture(seed))))

        first = embed(0)
        await until(lambda: gate.batches == [1, 1])
        others = [embed(n) for n in range(1, 6)]
        while (await stub.Info(EmbedderServiceInfoRequest())).service.queue_depth < 6:
            await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(first, *others)
        await stub.EmbedText(EmbedTextRequest(text="a dog"))
        counted = await asyncio.to_thread(metrics, port)
        assert counted['vlmir_batches_total{kind="image"}'] == 3
        assert counted['vlmir_batch_items_total{kind="image"}'] == 6
        assert counted['vlmir_batches_total{kind="text"}'] == 1
        assert counted["vlmir_queue_depth"] == 0

    port = free_port()
    serving(small_bundle_folder, test, batch=4, metrics_port=port)
    assert gate.batches == [1, 1, 4, 1]  # the first is the warm-up


def test_who_has_gone_is_not_computed_for(
    gate: Gate, small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    async def test(stub: EmbedderServiceStub) -> None:
        async def depth() -> int:
            return (await stub.Info(EmbedderServiceInfoRequest())).service.queue_depth

        def request(seed: int, **fields: Any) -> EmbedImageRequest:
            return asked(small.view_maker, picture(seed), **fields)

        first = asyncio.ensure_future(stub.EmbedImage(request(0)))
        await until(lambda: gate.batches == [1, 1])
        gone = asyncio.ensure_future(stub.EmbedImage(request(1)))
        while await depth() < 2:
            await asyncio.sleep(0.01)
        gone.cancel()
        late = stub.EmbedImage(request(2, time_budget_ms=150))
        assert (await refusal(late))[0] == "DEADLINE_EXCEEDED"
        late = stub.EmbedImage(request(3), timeout=0.15)
        assert (await refusal(late))[0] == "DEADLINE_EXCEEDED"
        while await depth() > 1:
            await asyncio.sleep(0.01)
        gate.open()
        await first
        await stub.EmbedImage(request(4))

    serving(small_bundle_folder, test)
    assert gate.batches == [1, 1, 1]


def test_one_too_many_is_told_when_to_come_back(
    gate: Gate, small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    async def test(stub: EmbedderServiceStub) -> None:
        request = asked(small.view_maker, picture(0))
        inside = [asyncio.ensure_future(stub.EmbedImage(request)) for _ in range(2)]
        while (await stub.Info(EmbedderServiceInfoRequest())).service.queue_depth < 2:
            await asyncio.sleep(0.01)
        assert await retry_delay(stub.EmbedImage(request)) > 0
        await stub.EmbedText(EmbedTextRequest(text="captions have a queue of their own"))
        gate.open()
        await asyncio.gather(*inside)
        await stub.EmbedImage(request)

    serving(small_bundle_folder, test, workers=1, queue=1)


def test_bad_requests_are_refused_in_a_sentence(
    small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    good = small.view_maker(picture(0)).numpy()
    stored = image_pb2.Tensor(dtype=image_pb2.DATA_TYPE_FLOAT32, shape=good.shape, uri="s3://b/k")
    short = to_message(good)
    short.data = short.data[:-4]
    cases = [
        (to_message(good[:1]), "5×6×64×64, not 1×6×64×64"),
        (to_message(good[:, :3]), "not 5×3×64×64"),
        (to_message(good.astype(np.float16)), "float32"),
        (to_message(np.where(good > 0, np.float32("nan"), good)), "not finite"),
        (stored, "object store"),
        (short, "bytes"),
        (image_pb2.Tensor(), "pixels has no content"),
    ]

    async def test(stub: EmbedderServiceStub) -> None:
        for tensor, said in cases:
            code, sentence = await refusal(stub.EmbedImage(EmbedImageRequest(pixels=tensor)))
            assert code == "INVALID_ARGUMENT" and said in sentence, sentence
        long = EmbedTextRequest(text="a" * (MOST_CHARACTERS + 1))
        code, sentence = await refusal(stub.EmbedText(long))
        assert code == "INVALID_ARGUMENT" and "at most 10000" in sentence
        await stub.EmbedImage(EmbedImageRequest(pixels=to_message(good)))

    serving(small_bundle_folder, test)


def test_another_release_is_not_answered_for(
    small_bundle_folder: Path, small: ClipEmbedder
) -> None:
    async def test(stub: EmbedderServiceStub) -> None:
        for call in (
            stub.EmbedImage(asked(small.view_maker, picture(0), release="small-9")),
            stub.EmbedText(EmbedTextRequest(text="a dog", release="small-9")),
        ):
            code, sentence = await refusal(call)
            assert code == "UNAVAILABLE" and "'small-1'" in sentence
        named = EmbedTextRequest(text="a dog", release="small-1")
        assert (await stub.EmbedText(named)).release == "small-1"

    serving(small_bundle_folder, test)


def test_onnx_files_must_be_there_and_of_this_embedder(
    small_bundle_folder: Path, imported_bundle_folder: Path, onnx: Path, tmp_path: Path
) -> None:
    async def never(stub: EmbedderServiceStub) -> None:
        raise AssertionError

    with pytest.raises(BundleError, match=r"clip_image\.onnx is missing.*--backend torch"):
        serving(small_bundle_folder, never, backend="onnxruntime")
    with pytest.raises(BundleError, match="another embedder"):
        serving(imported_bundle_folder, never, backend="onnxruntime", onnx=onnx)
    for name in ("clip_image", "clip_text"):
        (tmp_path / f"{name}.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="no ONNX file"):
        serving(small_bundle_folder, never, onnx=tmp_path)
    with pytest.raises(OptionError, match="--triton HOST:PORT"):
        serving(small_bundle_folder, never, backend="triton")


def test_a_process_finishes_its_calls_when_told_to_stop(
    small_bundle_folder: Path, onnx: Path, small: ClipEmbedder
) -> None:
    # Calls that are still on their way are taken for a moment.
    arguments = ("--bundle", str(small_bundle_folder), "--onnx", str(onnx), "--drain-s", "1")
    with process("services.embedder", *arguments) as (server, address):
        with grpc.insecure_channel(address) as channel:
            stub = EmbedderServiceStub(channel)
            request = asked(small.view_maker, picture(0))
            calls = [stub.EmbedImage.future(request) for _ in range(8)]
            calls[0].result(20)
            server.terminate()
            for call in calls:
                assert_same(call.result(20), small.embed_image(picture(0)))
        assert server.wait(PATIENCE_S) == 0


def test_a_bad_setting_is_told_in_one_line() -> None:
    status, said = fails("services.embedder", "--backend", "tensorflow")
    assert status == 2
    assert said.startswith("error: backend: ") and said.count("\n") == 1
