"""The three services in a thread, with small weights, for tests of what calls them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.captioner.server import CaptionerSettings
from services.captioner.server import running as captioner_running
from services.common.channels import connect_sync
from services.common.server import Server
from services.common.settings import ChannelSettings, ServerSettings
from services.common.store.folder import FolderStore
from services.common.work import WorkQueue
from services.embedder.server import running as embedder_running
from services.embedder.settings import EmbedderSettings
from services.restorer.cluster import Cluster
from services.restorer.cluster_servicer import ClusterServicer
from services.restorer.settings import ClusterSettings
from services.sampler.server import running as sampler_running
from services.sampler.settings import SamplerSettings
from vlmir.v1 import sampler_pb2
from vlmir.v1.restorer_pb2_grpc import (
    RestorerServiceStub,
    add_RestorerServiceServicer_to_server,
)
from vlmir.v1.sampler_pb2_grpc import SamplerServiceStub

PATIENCE_S = 20.0
RELEASE = "small-1"


@dataclass(frozen=True)
class Servers:
    """Addresses of the three services."""

    captioner: str
    embedder: str
    sampler: str


@contextmanager
def running_services(folder: Path) -> Iterator[Servers]:
    """The three services in one thread."""
    bundle = {"bundle": str(folder), "port": 0}
    ready, stop = threading.Event(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            for service in (
                captioner_running(CaptionerSettings(**bundle)),
                embedder_running(EmbedderSettings(**bundle)),
                sampler_running(SamplerSettings(**bundle)),
            ):
                found.append(await stack.enter_async_context(service))
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield Servers(*found)
    finally:
        stop.set()
        thread.join(PATIENCE_S)


@contextmanager
def cluster(servers: Servers, **settings: Any) -> Iterator[Cluster]:
    addresses = {**vars(servers), **settings}
    made = Cluster(ClusterSettings(**addresses))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def restorer(
    settings: ClusterSettings,
    store: FolderStore | None = None,
    kind: type[Cluster] = Cluster,
) -> Iterator[RestorerServiceStub]:
    """A restorer in a thread, over services elsewhere."""
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


@contextmanager
def stub_at(address: str, kind: Any) -> Iterator[Any]:
    channel = connect_sync(address, ChannelSettings())
    try:
        yield kind(channel)
    finally:
        channel.close()


def depth(stub: SamplerServiceStub) -> int:
    return int(stub.Info(sampler_pb2.SamplerServiceInfoRequest()).service.queue_depth)


def wait_for_depth(stub: SamplerServiceStub, wanted: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while depth(stub) != wanted:
        assert time.monotonic() < end
        time.sleep(0.01)
