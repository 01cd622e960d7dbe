"""Client against server over a real connection; the restorer is a small one."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.unit.services.harness import (
    PATIENCE_S,
    Running,
    SmallRestorer,
    a_picture,
    a_report,
    running_server,
)
from vlmir.client import ClientProgress, RestorationClient
from vlmir.errors import (
    BundleError,
    DeadlineError,
    ImageError,
    InputError,
    LimitError,
    OptionError,
    OverloadedError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)
from vlmir.image import Limits, decode
from vlmir.pipeline import RestoreOptions, Restorer
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

SERVICE = "vlmir.v1.RestorerService"
LIMITS = Limits(max_bytes=100_000, max_pixels=10_000)
ENDLESS = RestoreOptions(steps=10_000)


def stops_soon(restorer: SmallRestorer, gate: threading.Semaphore) -> bool:
    """Whether an endless restoration ends when its steps are let through one by one."""
    for _ in range(int(PATIENCE_S / 0.02)):
        gate.release()
        if restorer.closed.wait(0.02):
            return True
    return False


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server(SmallRestorer(limits=LIMITS)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[RestorationClient]:
    with RestorationClient(server.address) as connected:
        yield connected


def test_a_picture_comes_back_with_its_report(client: RestorationClient, tmp_path: Path) -> None:
    data = a_picture()
    restored = client.restore(data, RestoreOptions(seed=3, caption="a cat"))
    given, got = decode(data), decode(restored.image_bytes)
    np.testing.assert_allclose(got.pixels, 1 - given.pixels, atol=1e-6)
    assert restored.report == a_report(RestoreOptions(seed=3, caption="a cat"), given)
    (tmp_path / "in.png").write_bytes(data)
    client.restore(tmp_path / "in.png").save(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == restored.image_bytes


def test_all_options_arrive() -> None:
    some = RestoreOptions(
        steps=2,
        solver="ddim",
        seed=7,
        realism=0.3,
        ensemble=True,
        caption="a cat",
        degradation="noisy",
        strength=0.9,
        tile=0,
        format="webp",
        quality=71,
    )
    others = RestoreOptions(use_caption=False, format="webp", lossless=True)
    restorer = SmallRestorer()
    with running_server(restorer) as running, RestorationClient(running.address) as client:
        assert decode(client.restore(a_picture(), some).image_bytes).format == "webp"
        client.restore(a_picture(), others)
        client.restore(a_picture())
    assert restorer.options == [some, others, RestoreOptions()]


def test_the_stream_tells_progress_and_shows_previews(client: RestorationClient) -> None:
    heard: list[ClientProgress] = []
    restored = client.stream(
        a_picture(), RestoreOptions(steps=4), on_progress=heard.append, previews=True
    )
    assert [(progress.step, progress.steps) for progress in heard] == [(n, 4) for n in range(1, 5)]
    assert [progress.share for progress in heard] == [0.25, 0.5, 0.75, 1]
    previews = [decode(progress.preview) for progress in heard if progress.preview]
    assert [preview.pixels.shape for preview in previews] == [(20, 30, 3)] * 4
    assert restored == client.restore(a_picture(), RestoreOptions(steps=4))


def test_no_previews_unless_asked_for(client: RestorationClient) -> None:
    heard: list[ClientProgress] = []
    client.stream(a_picture(), on_progress=heard.append)
    assert [progress.preview for progress in heard] == [None] * 3


def test_a_file_is_saved_only_under_a_name_that_fits(
    client: RestorationClient, tmp_path: Path
) -> None:
    restored = client.restore(a_picture())
    with pytest.raises(OptionError, match="png"):
        restored.save(tmp_path / "restored.jpg")
    assert not list(tmp_path.iterdir())
    restored.save(tmp_path / "restored.png")
    assert (tmp_path / "restored.png").read_bytes() == restored.image_bytes


def test_a_file_that_is_not_there(client: RestorationClient, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.png cannot be read"):
        client.restore(tmp_path / "no.png")


def test_the_servers_own_limit_holds_where_the_caller_has_none() -> None:
    gate = threading.Semaphore(0)
    restorer = SmallRestorer(gate=gate)
    with (
        running_server(restorer, limit_s=0.2) as running,
        RestorationClient(running.address, timeout_s=None) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.restore, a_picture(), ENDLESS)
        assert restorer.started.wait(PATIENCE_S)
        assert stops_soon(restorer, gate)
        with pytest.raises(DeadlineError, match="limit-s"):
            call.result(PATIENCE_S)


def test_info(client: RestorationClient) -> None:
    info = client.info()
    assert (info.release, info.digests, info.device) == ("small-1", {"sampler": "ab" * 32}, "cpu")
    assert (info.max_image_bytes, info.max_image_pixels) == (100_000, 10_000)
    assert (info.queue_depth, info.queue_capacity) == (0, 17)
    assert info.labels == SmallRestorer.labels and info.solvers == SmallRestorer.solvers


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", ImageError),
        (b"not an image", ImageError),
        (a_picture()[:200], ImageError),
        (a_picture(200, 100), LimitError),
        (bytes(100_001), LimitError),
    ],
    ids=["empty", "text", "truncated", "pixels", "bytes"],
)
def test_a_bad_picture_is_refused_in_a_sentence(
    client: RestorationClient, data: bytes, kind: type[InputError]
) -> None:
    with pytest.raises(kind) as caught:
        client.restore(data)
    assert len(str(caught.value)) > 20
    assert _code(caught.value) is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(kind):
        client.stream(data, on_progress=lambda progress: None)


def test_a_message_too_big_is_refused_before_it_is_read(client: RestorationClient) -> None:
    with pytest.raises(LimitError):
        client.restore(bytes(3_000_000))


def test_an_unknown_option_is_refused(client: RestorationClient) -> None:
    with pytest.raises(OptionError, match="magic"):
        client.restore(a_picture(), RestoreOptions(solver="magic"))


@pytest.mark.parametrize(
    "request_",
    [
        restorer_pb2.RestoreRequest(),
        restorer_pb2.RestoreRequest(image=image_pb2.ImageSource(uri="file:///etc/passwd")),
        restorer_pb2.RestoreRequest(request_id="two\nlines"),
    ],
    ids=["no picture", "uri", "request id"],
)
def test_a_bad_request_is_refused(server: Running, request_: restorer_pb2.RestoreRequest) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        RestorerServiceStub(channel).Restore(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "fault", [BundleError("Weights gone."), UnavailableError("No hub."), DeadlineError("Late.")]
)
def test_the_librarys_errors_come_through(fault: VlmirError) -> None:
    restorer = SmallRestorer(fault=fault)
    with (
        running_server(restorer) as running,
        RestorationClient(running.address) as client,
        pytest.raises(type(fault), match=str(fault)),
    ):
        client.restore(a_picture())


def test_an_unexpected_error_is_logged_not_told(caplog: pytest.LogCaptureFixture) -> None:
    restorer = SmallRestorer(fault=KeyError("secret"))
    with (
        running_server(restorer) as running,
        RestorationClient(running.address) as client,
        pytest.raises(VlmirError) as caught,
    ):
        client.restore(a_picture(), request_id="call-17")
    assert "secret" not in str(caught.value) and "call-17" in str(caught.value)
    assert _code(caught.value) is grpc.StatusCode.INTERNAL
    assert "call-17" in caplog.text and "KeyError: 'secret'" in caplog.text


def test_each_call_leaves_one_line(
    client: RestorationClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vlmir.calls")
    client.restore(a_picture(), request_id="call-18")
    lines = [record.getMessage() for record in caplog.records if "call-18" in record.getMessage()]
    assert len(lines) == 1 and lines[0].startswith(f"/{SERVICE}/Restore OK id=call-18 ")


def test_a_full_queue_says_when_to_come_back() -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))
    with (
        running_server(restorer, queue=0) as running,
        RestorationClient(running.address) as client,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(client.restore, a_picture())
        assert restorer.started.wait(PATIENCE_S)
        with pytest.raises(OverloadedError) as caught:
            client.restore(a_picture())
        assert 0 < caught.value.retry_after_s < 60
        assert client.info().queue_depth == 1
        gate.release(3)
        assert first.result(PATIENCE_S).report.steps == 3
        assert _drained(client)


def test_the_deadline_ends_the_work_too() -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))
    with running_server(restorer) as running, RestorationClient(running.address) as client:
        with pytest.raises(DeadlineError):
            client.restore(a_picture(), ENDLESS, timeout_s=0.2)
        assert stops_soon(restorer, gate)


def test_the_time_budget_holds_without_a_deadline() -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))
    request = restorer_pb2.RestoreRequest(
        image=image_pb2.ImageSource(data=a_picture()),
        options=restorer_pb2.RestoreOptions(steps=ENDLESS.steps),
        time_budget_ms=50,
    )
    with running_server(restorer) as running, grpc.insecure_channel(running.address) as channel:
        call = RestorerServiceStub(channel).Restore.future(request)
        assert stops_soon(restorer, gate)
        with pytest.raises(grpc.RpcError) as caught:
            call.result(PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "fewer steps" in caught.value.details()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_that_leaves_stops_the_work(streaming: bool) -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))
    fields = {
        "image": image_pb2.ImageSource(data=a_picture()),
        "options": restorer_pb2.RestoreOptions(steps=ENDLESS.steps),
    }
    with running_server(restorer) as running, grpc.insecure_channel(running.address) as channel:
        stub = RestorerServiceStub(channel)
        call = (
            stub.RestoreStream(restorer_pb2.RestoreStreamRequest(**fields))
            if streaming
            else stub.Restore.future(restorer_pb2.RestoreRequest(**fields))
        )
        assert restorer.started.wait(PATIENCE_S)
        call.cancel()
        assert stops_soon(restorer, gate)
        with RestorationClient(running.address) as client:
            assert _drained(client)


def test_an_exception_in_the_callback_cancels_and_passes() -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(1)))

    def stop(progress: ClientProgress) -> None:
        raise InterruptedError

    with running_server(restorer) as running, RestorationClient(running.address) as client:
        with pytest.raises(InterruptedError):
            client.stream(a_picture(), ENDLESS, on_progress=stop)
        assert stops_soon(restorer, gate)


def test_stopping_says_so_first_and_lets_calls_finish() -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))
    with (
        running_server(restorer, drain_s=0.5) as running,
        RestorationClient(running.address) as client,
        grpc.insecure_channel(running.address) as channel,
        ThreadPoolExecutor() as pool,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        assert health.Check(check).status == health_pb2.HealthCheckResponse.SERVING
        call = pool.submit(client.restore, a_picture())
        assert restorer.started.wait(PATIENCE_S)
        running.stop.set()
        threading.Event().wait(0.2)
        assert health.Check(check).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not running.stopped.is_set()
        gate.release(3)
        assert call.result(PATIENCE_S).report.steps == 3
        assert running.stopped.wait(PATIENCE_S)
        with pytest.raises(UnavailableError):
            client.info()


def test_a_call_longer_than_the_grace_is_cancelled() -> None:
    restorer = SmallRestorer(gate=(gate := threading.Semaphore(0)))
    with (
        running_server(restorer, grace_s=0.2) as running,
        RestorationClient(running.address) as client,
        ThreadPoolExecutor() as pool,
    ):
        call = pool.submit(client.restore, a_picture(), ENDLESS)
        assert restorer.started.wait(PATIENCE_S)
        running.stop.set()
        with pytest.raises((RestorationCancelled, UnavailableError)):
            call.result(PATIENCE_S)
        assert stops_soon(restorer, gate)


def test_reflection_describes_the_service(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = list(database.get_services())
        assert {SERVICE, "grpc.health.v1.Health"} <= set(names)
        file = database.FindFileContainingSymbol(SERVICE)
    assert file.name == "vlmir/v1/restorer.proto"


def test_health_of_an_unknown_service_is_not_found(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_port_is_not_shared(server: Running) -> None:
    import asyncio

    from services.common.settings import ServerSettings
    from services.common.work import WorkQueue
    from services.restorer.embedded import restorer_server

    async def second() -> None:
        settings = ServerSettings(port=int(server.address.rpartition(":")[2]))
        work = WorkQueue(workers=1, waiting=0)
        await restorer_server(SmallRestorer(), work, settings).start()  # type: ignore[arg-type]

    with pytest.raises(UnavailableError, match="another port"):
        asyncio.run(second())


def test_no_server_is_unavailable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with RestorationClient(f"127.0.0.1:{port}") as client, pytest.raises(UnavailableError):
        client.restore(a_picture(), timeout_s=PATIENCE_S)


def _drained(client: RestorationClient) -> bool:
    """Whether the queue empties; a thread is free a moment after its reply was sent."""
    for _ in range(int(PATIENCE_S / 0.02)):
        if client.info().queue_depth == 0:
            return True
        threading.Event().wait(0.02)
    return False


def _code(error: VlmirError) -> grpc.StatusCode:
    cause = error.__cause__
    assert isinstance(cause, grpc.RpcError)
    code: grpc.StatusCode = cause.code()  # type: ignore[attr-defined]
    return code


def test_an_imported_bundle_is_served_without_a_captioner(imported_bundle_folder: Path) -> None:
    restorer = Restorer.load(imported_bundle_folder)
    with running_server(restorer) as running, RestorationClient(running.address) as client:
        info = client.info()
        plain = client.restore(a_picture())
        given = client.restore(a_picture(), RestoreOptions(caption="a dog"))
    assert info.digests == restorer.digests and set(info.digests) == {"embedder", "sampler"}
    assert info.labels == restorer.labels and len(info.labels) == 10
    assert plain.report.caption is None and plain.report.warnings == ()
    assert given.report.caption is None and "no effect" in given.report.warnings[0]
    assert given.image_bytes == plain.image_bytes
