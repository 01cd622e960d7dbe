"""A promotion while pictures are restored: three service processes that follow a real registry, and the restorer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mlflow import MlflowClient

from services.restorer.settings import ClusterSettings
from tests.integration.cluster import Cluster, starting_cluster
from tests.measured import measured_bundle
from tests.mlflow_server import MlflowServer
from tests.unit.services.stage_servers import restorer
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
CALLERS = 3
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
    """They look at the registry at different times, so that none changes with another."""
    flags = {
        part: ("--follow", FOLLOW, "--cache", str(tmp_path), "--poll-s", poll_s, "--linger-s", "3")
        for part, poll_s in zip(PARTS, ("0.7", "0.2", "2"), strict=True)
    }
    with starting_cluster(small_bundle_folder, **flags) as cluster:
        cluster.wait()
        yield cluster


def picture() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


class Callers:
    """Ask for one picture after the other, each until its last ones are of the new release."""

    def __init__(self, stub: RestorerServiceStub) -> None:
        self._stub = stub
        self._file = encode(Image.from_levels(picture()), format="png")
        self._seeds = iter(range(1, 10**6))
        self._end = time.monotonic() + PATIENCE_S
        self.warm = threading.Semaphore(0)
        """Released by each caller that has got some pictures."""

    def __call__(self) -> list[restorer_pb2.RestoreResult]:
        got: list[restorer_pb2.RestoreResult] = []
        while [result.report.release for result in got[-3:]] != [NEW] * 3:
            assert time.monotonic() < self._end, "the new release did not come"
            got.append(self._restore())
            if len(got) == 4:
                self.warm.release()
        return got

    def _restore(self) -> restorer_pb2.RestoreResult:
        # At realism 0 the seed changes nothing, but makes each request one that has to be computed.
        asked = restorer_pb2.RestoreRequest(
            image=image_pb2.ImageSource(data=self._file),
            options=restorer_pb2.RestoreOptions(seed=next(self._seeds), realism=0),
        )
        reply: Any = self._stub.Restore(asked, timeout=PATIENCE_S)
        result: restorer_pb2.RestoreResult = reply.result
        return result


def test_a_promotion_is_not_noticed_by_those_who_ask(registry: Registry, services: Cluster) -> None:
    with (
        restorer(ClusterSettings.model_validate(services.settings)) as stub,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        callers = Callers(stub)
        running: list[Future[list[restorer_pb2.RestoreResult]]] = [
            pool.submit(callers) for _ in range(CALLERS)
        ]
        for _ in running:
            assert callers.warm.acquire(timeout=PATIENCE_S)
        registry.move(2)
        told = [one.result() for one in running]  # none of their calls failed

    expected = {
        release: Restorer.load(bundle.folder).restore(picture())
        for release, bundle in registry.bundles.items()
    }
    levels = {release: one.image.pixels * 255 for release, one in expected.items()}
    assert np.abs(levels[OLD] - levels[NEW]).max() > 10
    for results in told:
        releases = [result.report.release for result in results]
        assert releases[:3] == [OLD] * 3
        assert releases == sorted(releases)  # there was no way back
        for result in results:
            release = result.report.release
            assert dict(result.report.digests) == registry.bundles[release].digests
            assert result.report.caption == expected[release].report.caption
            assert not result.report.warnings
            difference = np.abs(decode(result.image.data).pixels * 255 - levels[release])
            assert difference.max() < 1.01
