"""The client against real servers: pictures by way of a store, tries, TLS, asyncio, and the command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status
from minio import Minio

from services.common.errors import to_status
from services.common.store import Store, StoreSettings, open_store
from tests.certificates import Authority
from tests.unit.services.harness import (
    PATIENCE_S,
    Running,
    SmallRestorer,
    a_picture,
    running_server,
)
from tests.unit.services.s3 import needs_s3, s3_server
from vlmir.cli import main
from vlmir.client import TLS, AsyncRestorationClient, ClientProgress, RestorationClient
from vlmir.errors import (
    DeadlineError,
    InputError,
    LimitError,
    OptionError,
    OverloadedError,
    RestorationCancelled,
    UnavailableError,
)
from vlmir.image import Image, Limits, decode, encode
from vlmir.pipeline import RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import (
    RestorerServiceServicer,
    RestorerServiceStub,
    add_RestorerServiceServicer_to_server,
)

ROOT = Path(__file__).parents[2]
LIMITS = Limits(max_bytes=200_000, max_pixels=1_000_000)
PICTURE = a_picture()

needs_weights = pytest.mark.skipif(
    not (ROOT / "vlmir/assets/tiny/bundle.json").exists(), reason="no weights in vlmir/assets/tiny"
)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3")) as settings:
        yield settings


def opened(settings: dict[str, Any]) -> Store:
    store = open_store(StoreSettings.model_validate(settings))
    assert store is not None
    return store


@pytest.fixture(scope="module", params=["folder", pytest.param("s3", marks=needs_s3)])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    if request.param == "s3":
        return opened(request.getfixturevalue("s3"))
    return opened({"url": str(tmp_path_factory.mktemp("store"))})


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Running]:
    with running_server(SmallRestorer(limits=LIMITS), store=store) as running:
        yield running


def restore_by_stub(address: str, **fields: Any) -> restorer_pb2.RestoreResult:
    with grpc.insecure_channel(address) as channel:
        request = restorer_pb2.RestoreRequest(**fields)
        return RestorerServiceStub(channel).Restore(request, timeout=PATIENCE_S).result


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


# Pictures by way of the store


def test_a_picture_in_the_store_comes_back_as_a_link(server: Running, store: Store) -> None:
    source = image_pb2.ImageSource(uri=store.put(PICTURE, "image/png").uri)
    image = restore_by_stub(server.address, image=source, store_result=True).image
    assert image.WhichOneof("content") == "uri" and image.format == image_pb2.IMAGE_FORMAT_PNG
    with urllib.request.urlopen(image.uri, timeout=5) as reply:
        data = reply.read()
    assert (image.size, image.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert store.get(image.store_uri, len(data)) == data
    inline = restore_by_stub(server.address, image=image_pb2.ImageSource(data=PICTURE)).image
    assert inline.data == data and not inline.store_uri
    again = restore_by_stub(server.address, image=image_pb2.ImageSource(uri=image.store_uri)).image
    np.testing.assert_allclose(decode(again.data).pixels, decode(PICTURE).pixels, atol=1e-6)


def test_the_client_follows_the_link(server: Running, store: Store) -> None:
    with RestorationClient(server.address) as client:
        kept = client.restore(PICTURE, store_result=True)
        streamed = client.stream(PICTURE, on_progress=lambda _: None, store_result=True)
        plain = client.restore(PICTURE)
    assert kept.image_bytes == streamed.image_bytes == plain.image_bytes
    assert kept.uri == streamed.uri and kept.uri is not None and kept.link is not None
    assert store.get(kept.uri, 10**6) == kept.image_bytes
    assert (plain.uri, plain.link) == (None, None)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://foreign/x.png",
        "s3://vlmir/none.png",
        "s3://vlmir/../../etc/passwd",
        "file:///etc/passwd",
        "",
    ],
)
def test_a_bad_address_is_refused(server: Running, uri: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        restore_by_stub(server.address, image=image_pb2.ImageSource(uri=uri))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details()) > 20


def test_what_is_too_big_in_the_store_is_refused(server: Running, store: Store) -> None:
    source = image_pb2.ImageSource(uri=store.put(bytes(LIMITS.max_bytes + 1)).uri)
    with pytest.raises(grpc.RpcError, match=f"at most {LIMITS.max_bytes}") as caught:
        restore_by_stub(server.address, image=source)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_without_a_store_says_so() -> None:
    with (
        running_server(SmallRestorer()) as running,
        RestorationClient(running.address, upload_above=10) as client,
    ):
        assert client.info().takes_uploads is False
        with pytest.raises(InputError, match="no object store"):
            client.restore(PICTURE, store_result=True)
        assert client.restore(PICTURE).image_bytes  # big, and yet sent in the call
        with (
            grpc.insecure_channel(running.address) as channel,
            pytest.raises(grpc.RpcError, match="no object store") as caught,
        ):
            RestorerServiceStub(channel).CreateUpload(restorer_pb2.CreateUploadRequest(size=1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_big_picture_gives_the_same_whichever_way_it_travels(
    server: Running, store: Store
) -> None:
    with (
        RestorationClient(server.address, upload_above=len(PICTURE) - 1) as client,
        RestorationClient(server.address, upload_above=None) as plain,
    ):
        assert client.info().takes_uploads is store.remote
        assert client.restore(PICTURE) == plain.restore(PICTURE)


@needs_s3
def test_an_uploaded_picture_does_not_travel_in_the_call(
    s3: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vlmir.calls")
    netloc = s3["url"].removeprefix("http://")
    raw = Minio(netloc, s3["access_key"], s3["secret_key"], secure=False, region=s3["region"])

    def uploads() -> int:
        return len(list(raw.list_objects("vlmir", "uploads/", recursive=True)))

    restorer = SmallRestorer(limits=LIMITS)
    with (
        running_server(restorer, store=opened(s3)) as running,
        RestorationClient(running.address, upload_above=len(PICTURE) - 1) as client,
    ):
        before = uploads()
        client.restore(PICTURE, request_id="by-upload")
        client.stream(PICTURE, on_progress=lambda _: None)
        assert uploads() == before + 2
        with pytest.raises(LimitError, match=f"at most {LIMITS.max_bytes}"):
            client.restore(bytes(LIMITS.max_bytes + 1))
        assert uploads() == before + 2
    line = next(text for text in caplog.messages if "/Restore OK id=by-upload" in text)
    assert int(line.partition("bytes=")[2].split()[0]) < 300 < len(PICTURE)


@needs_s3
def test_a_result_too_big_for_a_message_goes_by_link(s3: dict[str, str]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    noise = encode(Image.from_levels(levels), format="jpeg", quality=5)
    assert len(noise) < LIMITS.max_bytes
    with (
        running_server(SmallRestorer(limits=LIMITS), store=opened(s3)) as running,
        RestorationClient(running.address) as client,
    ):
        restored = client.restore(noise, RestoreOptions(format="png"))
        assert client.restore(noise).link is None
    assert len(restored.image_bytes) > LIMITS.max_bytes + 2**20
    assert restored.link is not None and restored.link.startswith(s3["url"])


def test_a_result_that_cannot_be_stored_is_not_lost() -> None:
    from services.common.store.s3 import S3Store

    url = f"http://127.0.0.1:{closed_port()}"
    dead = S3Store(url, "vlmir", (), {}, access_key="a", secret_key="b", region="us-east-1")
    with (
        running_server(SmallRestorer(), store=dead) as running,
        RestorationClient(running.address) as client,
    ):
        restored = client.restore(PICTURE, store_result=True)
        assert decode(restored.image_bytes).width == 30 and restored.link is None
        assert "does not answer" in restored.report.warnings[-1]
        with pytest.raises(grpc.RpcError) as caught:
            restore_by_stub(running.address, image=image_pb2.ImageSource(uri="s3://vlmir/x"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with (
            RestorationClient(running.address, upload_above=9) as uploading,
            pytest.raises(UnavailableError, match=f"store at {url} cannot be reached from here"),
        ):
            uploading.restore(PICTURE)


# Tries


@contextmanager
def late_server(seconds: float) -> Iterator[str]:
    """The address of a server that starts after so many seconds."""
    port, stop = closed_port(), threading.Event()

    def serve() -> None:
        if not stop.wait(seconds):
            with running_server(SmallRestorer(), port=port):
                stop.wait(PATIENCE_S)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join(PATIENCE_S)


def test_a_server_that_comes_late_is_tried_again() -> None:
    big = a_picture(800, 800)  # more than gRPC keeps for another try unless it is told to
    assert len(big) > 1 << 20
    with late_server(0.3) as address, RestorationClient(address) as client:
        assert decode(client.restore(big).image_bytes).width == 800


def test_a_client_can_wait_for_its_server() -> None:
    with (
        late_server(3.0) as address,
        RestorationClient(address, wait_for_ready=True, timeout_s=PATIENCE_S) as client,
    ):
        began = time.monotonic()
        client.stream(PICTURE, on_progress=lambda _: None)
        assert time.monotonic() - began > 2.5


def test_waiting_ends_with_the_time() -> None:
    address = f"127.0.0.1:{closed_port()}"
    with (
        RestorationClient(address, wait_for_ready=True, timeout_s=0.3) as client,
        pytest.raises(DeadlineError),
    ):
        client.restore(PICTURE)


def refusals(caplog: pytest.LogCaptureFixture, name: str, *, least: int = 1) -> int:
    """How often the server refused the call of that name, once it has done so ``least`` times."""
    for _ in range(int(PATIENCE_S / 0.02)):
        count = sum(f" RESOURCE_EXHAUSTED id={name} " in text for text in list(caplog.messages))
        if count >= least:
            return count
        time.sleep(0.02)
    raise AssertionError("the call was not refused")


def test_an_overloaded_server_is_asked_again_when_it_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="vlmir.calls")
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))
    with (
        running_server(restorer, queue=0) as running,
        RestorationClient(running.address) as client,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(client.restore, PICTURE)
        assert restorer.started.wait(PATIENCE_S)
        began = time.monotonic()
        second = pool.submit(client.restore, PICTURE, request_id="second")
        with pytest.raises(OverloadedError):  # no time to wait for the second that it asks for
            client.restore(PICTURE, timeout_s=0.9, request_id="hurried")
        assert refusals(caplog, "hurried") == 1
        assert refusals(caplog, "second") == 1
        gate.release(6)
        assert first.result(PATIENCE_S).report.steps == 3
        assert second.result(PATIENCE_S).report.steps == 3
        assert time.monotonic() - began >= 1.0


def test_the_tries_have_an_end() -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))
    with (
        running_server(restorer, queue=0) as running,
        RestorationClient(running.address, tries=1) as client,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(client.restore, PICTURE)
        assert restorer.started.wait(PATIENCE_S)
        with pytest.raises(OverloadedError):
            client.stream(PICTURE, on_progress=lambda _: None)
        gate.release(3)
        first.result(PATIENCE_S)


class _Mortal(RestorerServiceServicer):
    """Breaks off each first call as Ray Serve does when a replica is killed, and answers the second."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def Restore(self, request: Any, context: Any) -> restorer_pb2.RestoreResponse:
        self.ids.append(request.request_id)
        if len(self.ids) % 2:
            context.abort(
                grpc.StatusCode.INTERNAL,
                "The actor died unexpectedly before finishing this task. pid 17 at /opt/x.py",
            )
        return restorer_pb2.RestoreResponse(result=self._result())

    def RestoreStream(self, request: Any, context: Any) -> Iterator[Any]:
        self.ids.append(request.request_id)
        yield restorer_pb2.RestoreStreamResponse(progress=image_pb2.Progress(step=1, steps=2))
        if len(self.ids) % 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Stream removed (Socket closed)")
        yield restorer_pb2.RestoreStreamResponse(result=self._result())

    def _result(self) -> restorer_pb2.RestoreResult:
        return restorer_pb2.RestoreResult(image=image_pb2.EncodedImage(data=PICTURE))


def test_a_call_that_breaks_off_is_tried_again_under_its_name() -> None:
    heard: list[ClientProgress] = []
    servicer = _Mortal()

    async def use(address: str) -> None:
        async with AsyncRestorationClient(address) as client:
            await client.restore(PICTURE, request_id="three")
            await client.stream(PICTURE, on_progress=heard.append, request_id="four")

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_RestorerServiceServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with RestorationClient(address) as client:
            assert client.restore(PICTURE, request_id="one").image_bytes == PICTURE
            client.stream(PICTURE, on_progress=heard.append, request_id="two")
        asyncio.run(use(address))
        with (
            RestorationClient(address, tries=1) as client,
            pytest.raises(UnavailableError, match="does not answer"),
        ):
            client.restore(PICTURE)
        server.stop(None).wait()
    assert servicer.ids[:-1] == [name for name in ("one", "two", "three", "four") for _ in "ab"]
    assert [progress.step for progress in heard] == [1] * 4


class _Troubled(RestorerServiceServicer):
    """Each rpc fails the first time as a gateway lets it fail, and succeeds the second."""

    def __init__(self, link: str) -> None:
        self._link = link
        self.called = Counter[str]()
        self.sources = list[str]()

    def Info(self, request: Any, context: Any) -> restorer_pb2.RestorerServiceInfoResponse:
        self._fail_once("Info", context, OverloadedError("full", retry_after_s=0.01))
        return restorer_pb2.RestorerServiceInfoResponse(takes_uploads=True)

    def CreateUpload(self, request: Any, context: Any) -> restorer_pb2.CreateUploadResponse:
        self._fail_once("CreateUpload", context, OverloadedError("full", retry_after_s=0.01))
        return restorer_pb2.CreateUploadResponse(uri="s3://vlmir/uploads/1", link=self._link)

    def RestoreStream(self, request: Any, context: Any) -> Iterator[Any]:
        self.sources.append(request.image.uri)
        yield restorer_pb2.RestoreStreamResponse(progress=image_pb2.Progress(step=1, steps=2))
        self._fail_once("RestoreStream", context, UnavailableError("replaced; try again"))
        self.called["ends"] += 1
        if self.called["ends"] > 1:
            result = restorer_pb2.RestoreResult(image=image_pb2.EncodedImage(data=PICTURE))
            yield restorer_pb2.RestoreStreamResponse(result=result)

    def _fail_once(self, name: str, context: Any, error: Exception) -> None:
        self.called[name] += 1
        if self.called[name] == 1:
            context.abort_with_status(rpc_status.to_status(to_status(error, "r")))


class _Shelf(BaseHTTPRequestHandler):
    """Takes every upload."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def troubled() -> Iterator[tuple[str, _Troubled]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Shelf) as shelf, ThreadPoolExecutor(2) as pool:
        threading.Thread(target=lambda: shelf.serve_forever(poll_interval=0.01)).start()
        servicer, server = _Troubled(f"http://127.0.0.1:{shelf.server_port}"), grpc.server(pool)
        add_RestorerServiceServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield address, servicer
        finally:
            server.stop(None).wait()
            shelf.shutdown()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_step_of_a_call_is_tried_again(asynchronous: bool) -> None:
    # Overloaded at Info and at CreateUpload, lost behind a gateway, and ended without a result.
    how: dict[str, Any] = {"upload_above": len(PICTURE) - 1, "tries": 5}

    async def use(address: str) -> bytes:
        async with AsyncRestorationClient(address, **how) as client:
            return (await client.stream(PICTURE, on_progress=lambda _: None)).image_bytes

    with troubled() as (address, servicer):
        if asynchronous:
            assert asyncio.run(use(address)) == PICTURE
        else:
            with RestorationClient(address, **how) as client:
                restored = client.stream(PICTURE, on_progress=lambda _: None)
            assert restored.image_bytes == PICTURE
    assert servicer.called == {"Info": 2, "CreateUpload": 2, "RestoreStream": 3, "ends": 2}
    assert servicer.sources == ["s3://vlmir/uploads/1"] * 3  # uploaded once


# asyncio


def test_the_asynchronous_client_does_the_same(server: Running, store: Store) -> None:
    heard: list[ClientProgress] = []

    async def use() -> list[Any]:
        async with AsyncRestorationClient(server.address, upload_above=len(PICTURE) - 1) as client:
            info = await client.info()
            many = await asyncio.gather(
                *(client.restore(PICTURE, RestoreOptions(seed=seed)) for seed in range(8))
            )
            kept = await client.stream(
                PICTURE, on_progress=heard.append, previews=True, store_result=True
            )
            return [info, many, kept]

    info, many, kept = asyncio.run(use())
    with RestorationClient(server.address) as client:
        assert info == client.info()
        assert many[0] == client.restore(PICTURE)
    assert [restored.report.seed for restored in many] == list(range(8))
    assert [progress.step for progress in heard] == [1, 2, 3]
    assert all(progress.preview for progress in heard)
    assert kept.image_bytes == many[0].image_bytes == store.get(kept.uri, 10**6)


def test_the_asynchronous_client_raises_the_same(server: Running) -> None:
    async def use() -> None:
        async with AsyncRestorationClient(server.address) as client:
            with pytest.raises(OptionError, match="magic"):
                await client.restore(PICTURE, RestoreOptions(solver="magic"))
            with pytest.raises(OptionError, match="magic"):
                await client.stream(
                    PICTURE, RestoreOptions(solver="magic"), on_progress=lambda _: None
                )
        async with AsyncRestorationClient(f"127.0.0.1:{closed_port()}") as client:
            with pytest.raises(UnavailableError, match="does not answer; see that it runs"):
                await client.info()

    asyncio.run(use())


def test_the_asynchronous_client_asks_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vlmir.calls")
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))

    async def use(address: str) -> None:
        async with AsyncRestorationClient(address) as client:
            first = asyncio.create_task(client.restore(PICTURE))
            assert await asyncio.to_thread(restorer.started.wait, PATIENCE_S)
            second = asyncio.create_task(client.restore(PICTURE, request_id="second"))
            assert await asyncio.to_thread(refusals, caplog, "second") == 1
            gate.release(6)
            assert (await first).report.steps == (await second).report.steps == 3

    with running_server(restorer, queue=0) as running:
        asyncio.run(use(running.address))
    assert len(restorer.options) == 2


def test_a_cancelled_task_cancels_its_call() -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(1)))

    async def use(address: str) -> None:
        async with AsyncRestorationClient(address) as client:
            task = asyncio.create_task(client.restore(PICTURE, RestoreOptions(steps=10_000)))
            assert await asyncio.to_thread(restorer.started.wait, PATIENCE_S)
            task.cancel()
            with pytest.raises((asyncio.CancelledError, RestorationCancelled)):
                await task
            for _ in range(int(PATIENCE_S / 0.02)):
                gate.release()
                if await asyncio.to_thread(restorer.closed.wait, 0.02):
                    return
            raise AssertionError("the work went on")

    with running_server(restorer) as running:
        asyncio.run(use(running.address))


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


class _Doorkeeper(RestorerServiceServicer):
    """Says in ``Info`` what token was shown."""

    def Info(self, request: Any, context: Any) -> restorer_pb2.RestorerServiceInfoResponse:
        shown = dict(context.invocation_metadata()).get("authorization", "")
        service = image_pb2.ServiceInfo(release=shown)
        return restorer_pb2.RestorerServiceInfoResponse(service=service)


@contextmanager
def tls_server(authority: Authority, *, mutual: bool) -> Iterator[str]:
    certificate, key = (file.read_bytes() for file in authority.issue("server"))
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_RestorerServiceServicer_to_server(_Doorkeeper(), server)
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)],
            authority.ca.read_bytes() if mutual else None,
            require_client_auth=mutual,
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def test_a_token_travels_over_tls(authority: Authority) -> None:
    tls = TLS(ca=authority.ca)

    async def ask(address: str) -> str:
        async with AsyncRestorationClient(address, tls=tls, token="abc") as client:
            return (await client.info()).release

    with tls_server(authority, mutual=False) as address:
        with RestorationClient(address, tls=tls, token="abc") as client:
            assert client.info().release == "Bearer abc"
        assert asyncio.run(ask(address)) == "Bearer abc"
        with RestorationClient(address, tls=tls) as client:
            assert client.info().release == ""
        for stranger in (RestorationClient(address), RestorationClient(address, tls=TLS())):
            with stranger as client, pytest.raises(UnavailableError):
                client.info()


def test_a_client_shows_its_certificate_where_asked(authority: Authority) -> None:
    ca, (certificate, key) = authority.ca, authority.issue("client")
    with tls_server(authority, mutual=True) as address:
        with RestorationClient(address, tls=TLS(ca=ca, certificate=certificate, key=key)) as client:
            client.info()
        with (
            RestorationClient(address, tls=TLS(ca=ca)) as client,
            pytest.raises(UnavailableError),
        ):
            client.info()


# The command line


def test_a_server_that_is_not_there_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{closed_port()}"
    source = tmp_path / "in.png"
    source.write_bytes(PICTURE)
    assert main(["restore", str(source), "-o", str(tmp_path / "o.png"), "--server", address]) == 1
    assert f"The server at {address} does not answer" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("store")
    with subprocess.Popen(
        [sys.executable, "-m", "services.restorer.embedded", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "VLMIR_STORE_URL": str(folder)},
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving "), line
            yield line.split()[-1]
        finally:
            process.kill()


@needs_weights
def test_the_command_line_restores_there_as_it_does_here(
    embedded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, side in (("a.png", 64), ("b.png", 80)):
        (photos / name).write_bytes(a_picture(64, side))
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    chosen = ["--steps", "2", "--seed", "3", "--degradation", "noisy", "--json"]
    lines = []
    for place, server in (("there", ["--server", embedded]), ("here", [])):
        command = ["restore", str(photos), "-o", str(tmp_path / place), *chosen, *server]
        assert main(command) == 1
        captured = capsys.readouterr()
        assert "2 done, 1 failed" in captured.err
        lines.append([json.loads(line) for line in captured.out.splitlines()])
    for remote, local in zip(*lines, strict=True):
        assert remote["status"] == local["status"]
        if remote["status"] == "failed":
            assert remote["error"] == local["error"]
            continue
        told, expected = remote["report"], local["report"]
        assert {**told, "milliseconds": 0, "degradations": 0} == {
            **expected,
            "milliseconds": 0,
            "degradations": 0,
        }
        pictures = [decode(Path(line["output"]).read_bytes()).pixels for line in (remote, local)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1.001 / 255


@needs_weights
def test_the_command_line_tells_about_the_server(embedded: str) -> None:
    command = [sys.executable, "-m", "vlmir", "info", "--server", embedded]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    with RestorationClient(embedded) as client:
        info = client.info()
        kept = client.restore(PICTURE, store_result=True)
    assert info.release in told.stdout and info.digests["sampler"] in told.stdout
    assert kept.link is not None and kept.link.startswith("file:///")
