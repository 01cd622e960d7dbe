"""The restoration service over other services, without Ray: a real server, real services, small weights."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.common.server import Server
from services.common.settings import ServerSettings
from services.common.store.folder import FolderStore
from services.common.work import WorkQueue
from services.restorer.cluster import Choice, Cluster
from services.restorer.cluster_servicer import ClusterServicer
from services.restorer.settings import ClusterSettings
from tests.integration.calls import free_port
from tests.unit.services.harness import SmallRestorer, running_server
from tests.unit.services.stage_servers import (
    PATIENCE_S,
    RELEASE,
    Servers,
    preset_file,
    running_services,
    stub_at,
    wait_for_depth,
)
from vlmir.image import Image, decode, encode
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import (
    RestorerServiceStub,
    add_RestorerServiceServicer_to_server,
)
from vlmir.v1.sampler_pb2_grpc import SamplerServiceStub


@pytest.fixture(scope="module")
def servers(small_bundle_folder: Path) -> Iterator[Servers]:
    with running_services(small_bundle_folder) as found:
        yield found


@pytest.fixture(scope="module")
def settings(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> ClusterSettings:
    preset = preset_file(tmp_path_factory.mktemp("preset"))
    return ClusterSettings(**vars(servers), preset=preset)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    made = FolderStore(tmp_path, "vlmir", [], {})
    made.prepare()
    return made


class Late(Cluster):
    """Hears of a promotion only when told to ask again, or not even then."""

    hears = True

    def choose(self, *, fresh: bool = False) -> Choice:
        choice = super().choose(fresh=fresh)
        return choice if fresh and self.hears else replace(choice, release="old-1")


class Deaf(Late):
    hears = False


@contextmanager
def restorer(
    settings: ClusterSettings,
    store: FolderStore | None = None,
    kind: type[Cluster] = Cluster,
) -> Iterator[RestorerServiceStub]:
    """A server in a thread."""
    ready, stop = threading.Event(), threading.Event()
    address: list[str] = []

    async def serve() -> None:
        cluster, work = kind(settings), WorkQueue(workers=2, waiting=2)
        servicer = ClusterServicer(cluster, work, limit_s=60, store=store)
        server = Server(
            ["vlmir.v1.RestorerService"],
            lambda one: add_RestorerServiceServicer_to_server(servicer, one),
            settings=ServerSettings(port=0, grace_s=1),
            limits=cluster.limits,
        )
        address.append(await server.start())
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.stop()
        await asyncio.to_thread(work.close)
        cluster.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        with stub_at(address[0], RestorerServiceStub) as stub:
            yield stub
    finally:
        stop.set()
        thread.join(PATIENCE_S)


def picture(side: int = 40) -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encode(Image.from_levels(levels), format="png")


def request(data: bytes | None = None, **options: Any) -> restorer_pb2.RestoreRequest:
    return restorer_pb2.RestoreRequest(
        image=image_pb2.ImageSource(data=data or picture()),
        options=restorer_pb2.RestoreOptions(degradation="noisy", **options),
    )


def test_a_request_begins_again_where_a_release_has_gone(settings: ClusterSettings) -> None:
    with restorer(settings, kind=Late) as stub:
        report = stub.Restore(request()).result.report
    assert report.release == RELEASE
    assert not report.warnings


def test_a_request_does_not_begin_again_for_ever(settings: ClusterSettings) -> None:
    with restorer(settings, kind=Deaf) as stub, pytest.raises(grpc.RpcError) as told:
        stub.Restore(request())
    assert told.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "changed twice" in told.value.details()


def test_a_stream_that_is_closed_frees_its_place(
    settings: ClusterSettings, servers: Servers
) -> None:
    asked = request(picture(240), steps=100)
    with restorer(settings) as stub, stub_at(servers.sampler, SamplerServiceStub) as sampler:
        stream = stub.RestoreStream(
            restorer_pb2.RestoreStreamRequest(image=asked.image, options=asked.options)
        )
        next(stream)
        began = time.monotonic()
        stream.cancel()
        wait_for_depth(sampler, 0)
        assert time.monotonic() - began < 3


def test_without_a_store_only_running_requests_are_known(
    settings: ClusterSettings, servers: Servers
) -> None:
    asked = request(picture(240), steps=100)
    asked.request_id = "id"
    wanted = restorer_pb2.GetResultRequest(request_id="id")
    with restorer(settings) as stub, stub_at(servers.sampler, SamplerServiceStub) as sampler:
        assert not stub.Info(restorer_pb2.RestorerServiceInfoRequest()).keeps_results
        running = stub.Restore.future(asked)
        wait_for_depth(sampler, 1)
        assert stub.GetResult(wanted).running
        running.cancel()
        wait_for_depth(sampler, 0)
        with pytest.raises(grpc.RpcError, match="keeps no results"):
            stub.GetResult(wanted)


def test_pictures_come_from_the_store_and_go_there(
    settings: ClusterSettings, store: FolderStore
) -> None:
    asked = request()
    asked.image.uri = store.put(picture(), "image/png").uri
    asked.store_result, asked.request_id = True, "id"
    with restorer(settings, store) as stub:
        linked = stub.Restore(asked).result.image
        found = stub.GetResult(restorer_pb2.GetResultRequest(request_id="id")).result.image
        info = stub.Info(restorer_pb2.RestorerServiceInfoRequest())
    assert store.get(linked.store_uri, linked.size) == found.data
    assert decode(found.data).width == 40
    assert info.keeps_results


def test_info_without_a_service_that_is_needed(settings: ClusterSettings) -> None:
    gone = settings.model_copy(update={"sampler": f"127.0.0.1:{free_port()}"})
    with restorer(gone) as stub:
        info = stub.Info(restorer_pb2.RestorerServiceInfoRequest())
    assert info.service.release == ""
    assert info.service.limits.max_image_pixels > 0
    assert "noisy" in info.labels


def test_the_embedded_server_keeps_no_results() -> None:
    with running_server(SmallRestorer()) as embedded, grpc.insecure_channel(embedded.address) as to:
        stub = RestorerServiceStub(to)
        with pytest.raises(grpc.RpcError) as told:
            stub.GetResult(restorer_pb2.GetResultRequest(request_id="id"))
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "keeps no results" in told.value.details()
