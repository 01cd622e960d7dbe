"""The restoration service over other services, without Ray: a real server, real services, small weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.common.store.folder import FolderStore
from services.restorer import cluster_servicer, results
from services.restorer.cluster import Choice, Cluster
from services.restorer.settings import ClusterSettings
from tests.integration.calls import free_port
from tests.unit.services.harness import SmallRestorer, running_server
from tests.unit.services.stage_servers import (
    RELEASE,
    Servers,
    restorer,
    running_services,
    stub_at,
    wait_for_depth,
)
from tests.unit.services.stores import Broken, Hanging
from vlmir.image import Image, decode, encode
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import (
    RestorerServiceStub,
)
from vlmir.v1.sampler_pb2_grpc import SamplerServiceStub


@pytest.fixture(scope="module")
def servers(small_bundle_folder: Path) -> Iterator[Servers]:
    with running_services(small_bundle_folder) as found:
        yield found


@pytest.fixture(scope="module")
def settings(servers: Servers) -> ClusterSettings:
    return ClusterSettings(**vars(servers))


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


def test_a_result_is_not_lost_in_a_store_that_hangs(
    settings: ClusterSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_ASK_S", 0.05)
    monkeypatch.setattr(cluster_servicer, "_LINK_S", 0.1)
    store = Hanging(tmp_path / "store")
    try:
        with restorer(settings, store) as stub:
            asked = request()
            asked.request_id, asked.store_result = "id", True
            result = stub.Restore(asked, timeout=20).result
            assert decode(result.image.data).width == 40
            assert "not by link: the store is too slow" in result.report.warnings[-1]
            asked = request()
            asked.image.uri, asked.time_budget_ms = "s3://vlmir/results/x.png", 100
            with pytest.raises(grpc.RpcError) as told:
                stub.Restore(asked, timeout=20)
            store.gate.set()
    finally:
        store.gate.set()
    assert told.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_result_is_not_lost_in_a_store_with_a_bug(
    settings: ClusterSettings, tmp_path: Path
) -> None:
    with restorer(settings, Broken(tmp_path / "store")) as stub:
        asked = request()
        asked.request_id, asked.store_result = "id", True
        result = stub.Restore(asked, timeout=20).result
    assert decode(result.image.data).width == 40
    kept, linked = result.report.warnings[-2:]
    assert "cannot be asked for again" in kept
    assert "not by link: the store failed" in linked


def test_a_picture_without_its_caption_is_not_kept_for_others(
    settings: ClusterSettings, store: FolderStore
) -> None:
    lame = settings.model_copy(update={"captioner": f"127.0.0.1:{free_port()}"})
    with restorer(lame, store) as stub:
        asked = request()
        asked.request_id = "id"
        report = stub.Restore(asked).result.report
        assert report.caption == "" and "without a caption" in report.warnings[0]
    with restorer(settings, store) as stub:
        again = request()
        assert stub.Restore(again).result.report.caption
        again.request_id = "id"
        assert stub.Restore(again).result.report.caption == ""
