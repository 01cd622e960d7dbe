"""Promotions while pictures are restored: three service processes that follow a real registry, behind Ray Serve."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mlflow import MlflowClient

from tests.integration.calls import wait_until
from tests.integration.cluster import Cluster, starting_cluster
from tests.integration.serving import running_ray, serving
from tests.measured import measured_bundle
from tests.mlflow_server import MlflowServer
from training.register import find_evaluation, register
from vlmir.bundle import Bundle
from vlmir.image import Image, decode, encode
from vlmir.pipeline import Restorer
from vlmir.registry import CHAMPION, SAMPLER
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

pytestmark = pytest.mark.timeout(400)  # the server alone may take half a minute to start

PARTS = ("captioner", "embedder", "sampler")
FOLLOW = f"models:/{SAMPLER}@{CHAMPION}"
OLD, NEW = "small-1@v1", "small-2@v2"
PROMOTED = [OLD, NEW, OLD, NEW, OLD, NEW]
CALLERS, REQUESTS = 3, 100
PATIENCE_S = 60.0


@dataclass
class Registry:
    """A registry with two versions, which have no weights in common."""

    client: MlflowClient
    bundles: dict[str, Bundle]

    def move(self, version: int) -> None:
        """Let the services serve a version."""
        self.client.set_registered_model_alias(SAMPLER, CHAMPION, str(version))


@pytest.fixture
def registry(
    tmp_path: Path, small_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    place = tmp_path / "server"
    place.mkdir()
    server = MlflowServer(place)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        bundles = {}
        for number, release in ((1, OLD), (2, NEW)):
            bundle = measured_bundle(
                small_bundle_folder, place / f"small-{number}", psnr=20.0 * number, changed=PARTS
            )
            register(bundle, evaluation=find_evaluation(bundle))
            bundles[release] = bundle
        made = Registry(MlflowClient(server.address, server.address), bundles)
        made.move(1)
        yield made
    finally:
        server.kill()


@pytest.fixture
def services(registry: Registry, small_bundle_folder: Path, tmp_path: Path) -> Iterator[Cluster]:
    """They look at the registry at different times, so that none changes with another; they may be starting still."""
    flags = {
        part: ("--follow", FOLLOW, "--cache", str(tmp_path), "--poll-s", poll_s, "--linger-s", "3")
        for part, poll_s in zip(PARTS, ("0.7", "0.2", "2"), strict=True)
    }
    with starting_cluster(small_bundle_folder, **flags) as cluster:
        yield cluster


def picture() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


class Callers:
    """Ask for one picture after the other, until all have had the release that is waited for."""

    def __init__(self, stub: RestorerServiceStub) -> None:
        self._stub = stub
        self._file = encode(Image.from_levels(picture()), format="png")
        self._seeds = iter(range(1, 10**6))
        self.got: list[list[restorer_pb2.RestoreResult]] = [[] for _ in range(CALLERS)]
        """What each has had."""
        self.stop = threading.Event()

    def __call__(self, caller: int) -> None:
        while not self.stop.is_set():
            self.got[caller].append(self._restore())

    def wait(self, release: str) -> None:
        """Return when the last four pictures of each caller are of the release."""
        wait_until(
            lambda: all(
                [one.report.release for one in got[-4:]] == [release] * 4 for got in self.got
            ),
            within_s=PATIENCE_S,
            told=lambda: f"{release} did not come",
        )

    def _restore(self) -> restorer_pb2.RestoreResult:
        # At realism 0 the seed changes nothing, but makes each request one that has to be computed.
        asked = restorer_pb2.RestoreRequest(
            image=image_pb2.ImageSource(data=self._file),
            options=restorer_pb2.RestoreOptions(seed=next(self._seeds), realism=0),
        )
        reply: Any = self._stub.Restore(asked, timeout=PATIENCE_S)
        result: restorer_pb2.RestoreResult = reply.result
        return result


def test_five_promotions_are_not_noticed_by_those_who_ask(
    registry: Registry, services: Cluster
) -> None:
    with (
        running_ray({}),
        serving(services) as application,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        callers = Callers(application.stub)
        running = [pool.submit(callers, number) for number in range(CALLERS)]
        try:
            callers.wait(OLD)
            for release in PROMOTED[1:]:
                registry.move(int(release[-1]))
                callers.wait(release)
        finally:
            callers.stop.set()
        for one in running:
            one.result()  # none of their calls failed

    expected = {
        release: Restorer.load(bundle.folder).restore(picture())
        for release, bundle in registry.bundles.items()
    }
    levels = {release: one.image.pixels * 255 for release, one in expected.items()}
    assert np.abs(levels[OLD] - levels[NEW]).max() > 10
    assert sum(map(len, callers.got)) >= REQUESTS
    for results in callers.got:
        releases = [result.report.release for result in results]
        assert [release for release, _ in itertools.groupby(releases)] == PROMOTED
        for result in results:
            release = result.report.release
            assert dict(result.report.digests) == registry.bundles[release].digests
            assert result.report.caption == expected[release].report.caption
            assert not result.report.warnings
            difference = np.abs(decode(result.image.data).pixels * 255 - levels[release])
            assert difference.max() < 1.01
