"""What the restorer knows of releases that are held, but not the current ones."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from services.common.batching import BatchCounts
from services.common.parcels import Parcels
from services.common.releases import Releases
from services.common.server import Server
from services.common.settings import ServerSettings
from services.embedder.model import BackendChoice, EmbedderModel, loader
from services.embedder.servicer import EmbedderServicer
from services.restorer.stages import EmbedderTraits
from services.sampler.batcher import Batcher
from services.sampler.budget import Budget
from services.sampler.model import load_model
from services.sampler.servicer import SamplerServicer
from tests.unit.services.stage_servers import PATIENCE_S, Servers, cluster, stub_at
from vlmir.bundle import Bundle, load_bundle
from vlmir.client.failures import translated
from vlmir.compute import REFERENCE
from vlmir.errors import ReleaseError
from vlmir.image import Limits
from vlmir.sampling import CALL_PIXELS, DiffusionSampler
from vlmir.v1.embedder_pb2 import EmbedderServiceInfoRequest
from vlmir.v1.embedder_pb2_grpc import EmbedderServiceStub, add_EmbedderServiceServicer_to_server
from vlmir.v1.sampler_pb2_grpc import add_SamplerServiceServicer_to_server


@dataclass
class Services:
    """An embedder and a sampler, whose releases a test changes."""

    servers: Servers
    embedder: Releases[EmbedderModel]
    sampler: Releases[DiffusionSampler]

    def drop_old(self) -> None:
        """Forget all releases but the current ones."""
        self.embedder.sweep()
        self.sampler.sweep()


@pytest.fixture(scope="module")
def old(small_bundle_folder: Path) -> Bundle:
    return load_bundle(small_bundle_folder)


@pytest.fixture(scope="module")
def new(small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another look at pictures, other tiles."""
    folder = tmp_path_factory.mktemp("new") / "bundle"
    shutil.copytree(small_bundle_folder, folder)
    about = json.loads((folder / "bundle.json").read_text("utf-8"))
    about["release"] = "small-2"
    about["preset"]["embedder"]["window"] = 0.5
    about["preset"]["sampler"]["tile"] = 192
    (folder / "bundle.json").write_text(json.dumps(about))
    return load_bundle(folder)


@pytest.fixture
def services() -> Iterator[Services]:
    choice = BackendChoice(
        name="torch",
        triton=None,
        patience_s=0,
        onnx=None,
        max_batch=4,
        capacity=8,
        counts=(BatchCounts(), BatchCounts()),
    )
    embedder = Releases(
        "embedder", loader(choice), EmbedderModel.warm_up, EmbedderModel.close, linger_s=0
    )
    sampler = Releases(
        "sampler", partial(load_model, compute=REFERENCE), lambda model: None, linger_s=0
    )
    batcher = Batcher(active=2, waiting=2, pixels=2**18, room=10**6)
    servicers = (
        EmbedderServicer(embedder, limits=Limits(), limit_s=60),
        SamplerServicer(
            sampler,
            batcher,
            limits=Limits(),
            max_window=2**18,
            limit_s=60,
            budget=Budget.of(torch.device("cpu"), call_pixels=CALL_PIXELS),
            parcels=Parcels(),
            device="",
        ),
    )
    try:
        with serving(*servicers) as addresses:
            yield Services(Servers("", *addresses), embedder, sampler)
    finally:
        batcher.close()
        embedder.close()
        sampler.close()


@contextmanager
def serving(embedder: EmbedderServicer, sampler: SamplerServicer) -> Iterator[list[str]]:
    """Real servers in a thread; their addresses."""
    ready, stop = threading.Event(), threading.Event()
    addresses: list[str] = []

    def server(name: str, add: Any, servicer: Any) -> Server:
        return Server(
            [f"vlmir.v1.{name}"],
            lambda one: add(servicer, one),
            settings=ServerSettings(port=0, grace_s=1),
            limits=Limits(),
        )

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            for one in (
                server("EmbedderService", add_EmbedderServiceServicer_to_server, embedder),
                server("SamplerService", add_SamplerServiceServicer_to_server, sampler),
            ):
                addresses.append(await one.start())
                stack.push_async_callback(one.stop)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield addresses
    finally:
        stop.set()
        thread.join(PATIENCE_S)


def test_the_traits_are_those_of_the_release_that_is_chosen(
    services: Services, old: Bundle, new: Bundle
) -> None:
    services.sampler.serve("old", old)
    for name, bundle in (("old", old), ("new", new)):
        services.embedder.serve(name, bundle)
    with cluster(services.servers) as made:
        infos = made.infos()
        assert infos.embedder is not None
        assert infos.embedder.service.release == "new"
        before = made.choose()
        services.sampler.serve("new", new)
        after = made.choose(fresh=True)
    for choice, release, bundle in ((before, "old", old), (after, "new", new)):
        assert choice.release == release
        assert choice.digests == bundle.digests
        assert isinstance(choice.embedder, EmbedderTraits)
        assert choice.embedder.views.window == bundle.preset.embedder.window
        assert choice.sampler.tile == bundle.preset.sampler.tile
    assert before.sampler.labels == old.preset.labels


def test_a_sampler_is_asked_for_a_release_that_it_serves_no_more(
    services: Services, old: Bundle, new: Bundle
) -> None:
    services.embedder.serve("old", old)
    for name, bundle in (("old", old), ("new", new)):
        services.sampler.serve(name, bundle)
    with cluster(services.servers) as made:
        choice = made.choose()
    assert (choice.release, choice.sampler.tile) == ("old", old.preset.sampler.tile)


def test_another_is_chosen_where_one_is_given_up_meanwhile(
    services: Services, old: Bundle, new: Bundle
) -> None:
    services.sampler.serve("old", old)
    for name, bundle in (("old", old), ("new", new)):
        services.embedder.serve(name, bundle)
    with cluster(services.servers) as made:
        made.infos()
        services.sampler.serve("new", new)
        services.drop_old()
        assert services.embedder.names == ("new",)
        assert made.choose().release == "new"


def test_an_embedder_tells_of_releases_that_it_holds_only(
    services: Services, old: Bundle, new: Bundle
) -> None:
    with stub_at(services.servers.embedder, EmbedderServiceStub) as stub:
        assert not stub.Info(EmbedderServiceInfoRequest()).service.releases
        for name, bundle in (("old", old), ("new", new)):
            services.embedder.serve(name, bundle)
        told = stub.Info(EmbedderServiceInfoRequest(release="old"))
        assert told.service.release == "old"
        assert list(told.service.releases) == ["new", "old"]
        assert told.window == old.preset.embedder.window
        with pytest.raises(grpc.RpcError) as refused:
            stub.Info(EmbedderServiceInfoRequest(release="older"))
        assert isinstance(translated(refused.value, "x"), ReleaseError)
        assert services.embedder.wanted == "older"
