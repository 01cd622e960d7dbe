"""Services' weights follow an alias on a real MLflow server, whoever moves it, and outlive that server."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from services.common.follower import Follower
from services.common.registry import MlflowRegistry
from services.common.releases import Releases
from services.common.settings import WeightsSettings
from services.common.weights import weights
from tests.measured import measured_bundle
from tests.mlflow_server import MlflowServer
from training.register import find_evaluation, register
from vlmir.bundle import Bundle, find_bundle, load_bundle
from vlmir.parts import build_captioner, build_embedder, build_unet
from vlmir.registry import CHAMPION, MODELS, ONNX_DIGEST, SAMPLER, digest_of_onnx

pytestmark = pytest.mark.timeout(400)  # the server alone may take half a minute to start

FOLLOW = f"models:/{SAMPLER}@{CHAMPION}"
LOADERS: dict[str, Callable[[Bundle], Any]] = {
    "captioner": build_captioner,
    "embedder": build_embedder,
    "sampler": build_unet,
}


@dataclass
class Service:
    """What a service does with its weights."""

    part: str
    releases: Releases[Any]
    follower: Follower[Any]
    loaded: list[str]


class Cluster:
    """Services of one registry."""

    def __init__(self, server: MlflowServer, cache: Path) -> None:
        self.server, self.cache = server, cache
        self.client = MlflowClient(server.address, server.address)
        self.running: list[Service] = []

    def start(self, part: str, *, cache: str = "cache", stand_in: str = "") -> Service:
        loaded = list[str]()

        def load(bundle: Bundle) -> Any:
            loaded.append(bundle.release)
            return LOADERS[part](bundle)

        releases = Releases[Any](part, load, lambda model: None)
        follower = Follower(
            MlflowRegistry(FOLLOW, self.server.address),
            releases,
            part=part,
            cache=self.cache / cache,
            poll_s=0.1,
            stand_in=stand_in,
        )
        follower.start()
        follower.wait()
        self.running.append(Service(part, releases, follower, loaded))
        return self.running[-1]

    def move(self, version: int) -> None:
        """Move the alias as a hand in the UI does."""
        self.client.set_registered_model_alias(SAMPLER, CHAMPION, str(version))

    def stop(self) -> None:
        for service in self.running:
            service.follower.stop()
            service.releases.close()
        self.running.clear()


def serves(service: Service, release: str) -> bool:
    return service.releases.names[:1] == (release,)


def wait_until(condition: Callable[[], bool], within_s: float = 15) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, small_bundle_folder: Path
) -> Iterator[MlflowServer]:
    """A registry with versions 1 and 2, of which the sampler differs, and 3, whose sampler is damaged."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", server.address)
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            source = small_bundle_folder
            for number in (1, 2, 3):
                before = {*server.files.rglob("sampler/model.safetensors")}
                folder = server.place / f"small-{number}"
                source = measured_bundle(
                    source, folder, psnr=26.0 + number, changed=("sampler",)
                ).folder
                register_quietly(source)
            (damaged,) = {*server.files.rglob("sampler/model.safetensors")} - before
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        yield server
    finally:
        server.kill()


def register_quietly(folder: Path) -> None:
    bundle = load_bundle(folder)
    register(bundle, evaluation=find_evaluation(bundle))


@pytest.fixture
def cluster(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    # What following sets for the whole process; other tests are to have their own.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    cluster = Cluster(server, tmp_path)
    cluster.move(1)
    yield cluster
    cluster.stop()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_all_services_follow_the_hand_and_share_what_is_unchanged(cluster: Cluster) -> None:
    services = [cluster.start(part) for part in LOADERS]
    assert [s.releases.names for s in services] == [("small-1@v1",)] * 3
    cluster.move(2)
    wait_until(lambda: all(serves(s, "small-2@v2") for s in services))
    assert {s.part: s.loaded for s in services} == {
        "captioner": ["small-1"],
        "embedder": ["small-1"],
        "sampler": ["small-1", "small-2"],
    }
    # A request that began on the old release finds it everywhere.
    for service in services:
        with service.releases.lease("small-1@v1") as old, service.releases.lease() as new:
            assert (old.model is new.model) == (service.part != "sampler")
            assert old.digests["sampler"] != new.digests["sampler"]
    cluster.move(1)
    wait_until(lambda: all(serves(s, "small-1@v1") for s in services))
    assert services[2].loaded == ["small-1", "small-2"]  # it was still held

    captioner, embedder, sampler = (
        min((cluster.cache / "cache" / part).glob("1-*")) for part in LOADERS
    )
    words = {"captioner/model.safetensors", "captioner/tokenizer.json"}
    graphs = {"onnx/clip_image.onnx", "onnx/clip_text.onnx"}
    assert files(captioner) == {"bundle.json", *words}
    assert files(embedder) == {"bundle.json", "embedder/model.safetensors", *words, *graphs}
    assert files(sampler) == {"bundle.json", "sampler/model.safetensors"}


def test_a_damaged_version_is_refused_and_the_others_go_on_with_the_old_one(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    captioner, sampler = cluster.start("captioner"), cluster.start("sampler")
    cluster.move(3)
    wait_until(lambda: bool(sampler.releases.refused) and serves(captioner, "small-3@v3"))
    assert "small-3@v3" in sampler.releases.refused
    assert "digest mismatch" in sampler.releases.refused
    assert serves(sampler, "small-1@v1")
    time.sleep(0.5)  # some more looks
    refusals = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(refusals) == 1
    assert "small-1@v1 serves on" in refusals[0].getMessage()
    assert not [*(cluster.cache / "cache" / "sampler").glob("3-*")]
    with captioner.releases.lease("small-1@v1"):
        pass
    cluster.move(1)
    wait_until(lambda: not sampler.releases.refused and serves(captioner, "small-1@v1"))
    assert sampler.loaded == ["small-1"]


def test_onnx_files_that_are_not_those_registered_are_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    (graph,) = cluster.server.files.rglob("onnx/clip_text.onnx")
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        embedder = cluster.start("embedder")
        assert "ONNX files of vlmir-embedder version 1 are not" in embedder.releases.refused
        # A version of before they had a digest is taken as it is.
        cluster.client.delete_model_version_tag(MODELS["embedder"], "1", ONNX_DIGEST)
        untold = cluster.start("embedder", cache="another")
        assert serves(untold, "small-1@v1")
    finally:
        graph.write_bytes(content)
        cluster.client.set_model_version_tag(
            MODELS["embedder"], "1", ONNX_DIGEST, digest_of_onnx(graph.parent)
        )
    fresh = cluster.start("embedder", cache="a third")
    assert serves(fresh, "small-1@v1")


def test_a_dead_registry_changes_nothing_and_a_new_start_finds_the_cache(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlmir")
    sampler = cluster.start("sampler")
    cluster.server.kill()
    try:
        silence = f"MLflow at {cluster.server.address} does not answer"
        wait_until(lambda: silence in caplog.text)
        time.sleep(0.5)  # some more looks
        assert [r.levelname for r in caplog.records].count("WARNING") == 1
        assert serves(sampler, "small-1@v1")

        again = cluster.start("sampler")
        assert again.releases.names == ("small-1@v1",)
        assert "of the cache until the registry is heard" in caplog.text
        fresh = cluster.start("captioner", stand_in="tiny")
        assert fresh.releases.names[0].startswith("tiny-")
        assert "@" not in fresh.releases.names[0]
        waiting = cluster.start("captioner", cache="another")
        assert waiting.releases.names == ()
        assert "nothing is served yet" in caplog.text
    finally:
        cluster.server.start()
    wait_until(lambda: serves(fresh, "small-1@v1") and serves(waiting, "small-1@v1"))
    assert "the registry answers again" in caplog.text
    cluster.move(2)
    wait_until(lambda: all(serves(s, "small-2@v2") for s in cluster.running))


def test_a_service_s_main_has_it_in_a_line(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", cluster.server.address)
    settings = WeightsSettings(follow=FOLLOW, poll_s=0.1, cache=cluster.cache)

    async def main() -> None:
        async with weights(
            settings, part="sampler", load=build_unet, warm_up=lambda model: None
        ) as releases:
            assert releases.names == ("small-1@v1",)
            await asyncio.to_thread(cluster.move, 2)
            await asyncio.to_thread(
                wait_until, lambda: releases.names == ("small-2@v2", "small-1@v1")
            )
        assert releases.names == ()

    asyncio.run(main())
    assert "vlmir-follower" not in {thread.name for thread in threading.enumerate()}


def test_a_missing_alias_changes_nothing(cluster: Cluster) -> None:
    sampler = cluster.start("sampler")
    cluster.client.delete_registered_model_alias(SAMPLER, CHAMPION)
    time.sleep(0.5)
    assert serves(sampler, "small-1@v1")
    cluster.move(2)
    wait_until(lambda: serves(sampler, "small-2@v2"))


PROMOTIONS = """
import sys
import numpy as np
import psutil
from services.common.releases import Releases
from vlmir.bundle import load_bundle
from vlmir.parts import build_captioner, build_embedder, build_unet

def load(bundle):
    return build_captioner(bundle), build_embedder(bundle), build_unet(bundle)

def warm_up(models):
    models[0].caption(np.zeros((64, 64, 3), np.float32))

releases = Releases("sampler", load, warm_up, linger_s=0)
bundles = [load_bundle(folder) for folder in sys.argv[1:]]
for number in range(10):
    releases.serve(str(number), bundles[number % 2])
    releases.sweep()
    assert releases.names == (str(number),)
    print(psutil.Process().memory_info().rss >> 20)
"""


def test_ten_promotions_leave_the_memory_as_it_was(tmp_path: Path) -> None:
    # A process of its own: other tests' memory comes and goes.
    tiny = find_bundle("tiny")
    other = measured_bundle(tiny, tmp_path / "other", changed=("sampler",)).folder
    done = subprocess.run(
        [sys.executable, "-c", PROMOTIONS, str(tiny), str(other)],
        capture_output=True,
        text=True,
        check=True,
    )
    megabytes = [int(line) for line in done.stdout.split()]
    assert len(megabytes) == 10
    # The three networks of one release, in float32, are some 75 MB.
    assert megabytes[-1] <= megabytes[1] + 10, megabytes
