"""The three services in a thread, with small weights, for tests of what calls them."""

from __future__ import annotations

import asyncio
import json
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
from services.common.settings import ChannelSettings
from services.embedder.server import running as embedder_running
from services.embedder.settings import EmbedderSettings
from services.restorer.cluster import Cluster
from services.restorer.settings import ClusterSettings
from services.sampler.server import running as sampler_running
from services.sampler.settings import SamplerSettings
from tests.small import small_preset
from vlmir.v1 import sampler_pb2
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


def preset_file(folder: Path) -> str:
    """The architecture of the small weights, as a file."""
    path = folder / "small.json"
    path.write_text(json.dumps(small_preset().to_dict()))
    return str(path)


@contextmanager
def cluster(servers: Servers, preset: str, **settings: Any) -> Iterator[Cluster]:
    addresses = {**vars(servers), "preset": preset, **settings}
    made = Cluster(ClusterSettings(**addresses))
    try:
        yield made
    finally:
        made.close()


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
