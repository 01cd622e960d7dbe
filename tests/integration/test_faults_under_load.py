"""Faults beside deaths, while pictures are restored: of the registry, the network, and those who ask."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from mlflow import MlflowClient

from services.common.errors import from_details
from tests.integration.calls import metrics, wait_until
from tests.integration.cluster import starting_cluster
from tests.integration.link import Link, slow_link
from tests.integration.load import HEALTHY_S, PATIENCE_S, Answer, Load, Photo, ask, photo
from tests.integration.serving import Application, replicas, running_ray, serving
from tests.measured import measured_bundle
from tests.mlflow_server import MlflowServer
from training.register import find_evaluation, register
from vlmir.bundle import load_bundle
from vlmir.client import RestorationClient
from vlmir.errors import DeadlineError, OverloadedError, UnavailableError
from vlmir.image import Image, encode
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer
from vlmir.registry import CHAMPION, SAMPLER
from vlmir.v1 import image_pb2, restorer_pb2

pytestmark = pytest.mark.timeout(400)  # MLflow's server alone may take half a minute to start

PARTS = ("captioner", "embedder", "sampler")
FOLLOW = f"models:/{SAMPLER}@{CHAMPION}"
OLD, NEW = "small-1@v1", "small-2@v2"
WORKERS, QUEUE = 4, 2
"""Pictures that the restorer takes side by side, and that may wait."""
MANY = 16
"""Callers that are too many."""
HANGING_UP, HURRIED = 4, 3
LONG = 100
"""Steps that take seconds."""
ADDED_S = 0.2
"""What the slow network adds to a question and its answer."""
HURRY_S = 4.0
"""What callers grant while the network hangs."""
LATE_S = 3.0
"""Seconds that a busy machine may be late."""
SAMPLE = 'method="Sample",service="vlmir.v1.SamplerService"'


@dataclass
class Everything:
    """The cluster with its registry, and a way to the sampler that can be slow."""

    app: Application
    link: Link
    mlflow: MlflowServer

    def restore(self, timeout_s: float = PATIENCE_S, **how: Any) -> Any:
        """A long request under way."""
        return self.app.stub.Restore.future(request(**how), timeout=timeout_s)

    def promote(self, version: int) -> None:
        """Move the alias."""
        client = MlflowClient(self.mlflow.address, self.mlflow.address)
        client.set_registered_model_alias(SAMPLER, CHAMPION, str(version))

    def ended(self, *codes: str) -> int:
        """Calls to the sampler that ended so."""
        names = (f'vlmir_requests_total{{code="{code}",{SAMPLE}}}' for code in codes)
        counted = self._counted()
        return int(sum(counted.get(name, 0) for name in names))

    def long_begun(self) -> int:
        """Long requests that the sampler was given: theirs are the big messages."""
        counted = self._counted()
        short = counted.get(f'vlmir_request_bytes_bucket{{le="262144.0",{SAMPLE}}}', 0)
        return int(counted.get(f"vlmir_request_bytes_count{{{SAMPLE}}}", 0) - short)

    def wait_for_idleness(self) -> None:
        """Return when nobody computes for anybody."""

        def is_idle() -> bool:
            wanted = restorer_pb2.RestorerServiceInfoRequest()
            info = self.app.stub.Info(wanted, timeout=PATIENCE_S)
            active = self._counted()["vlmir_active_pictures"]
            return info.service.queue_depth + self.app.cluster.sampler_depth + active == 0

        wait_until(is_idle, within_s=LATE_S)

    def _counted(self) -> dict[str, float]:
        return metrics(self.app.cluster.sampler.metrics_port)


@pytest.fixture(scope="module")
def versions(
    small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Bundles by the names that releases have in the registry; they differ in the sampler."""
    folder = tmp_path_factory.mktemp("versions")
    for number in (1, 2):
        measured_bundle(
            small_bundle_folder, folder / f"small-{number}", psnr=20.0 * number, changed=PARTS[2:]
        )
    return {OLD: folder / "small-1", NEW: folder / "small-2"}


@pytest.fixture(scope="module")
def cluster(
    small_bundle_folder: Path,
    versions: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Everything]:
    """On Ray Serve, with real processes."""
    folder = tmp_path_factory.mktemp("cluster")
    for name in ("mlflow", "store", "cache"):
        (folder / name).mkdir()
    mlflow = MlflowServer(folder / "mlflow")
    settings = {"MLFLOW_TRACKING_URI": mlflow.address, "VLMIR_STORE_URL": str(folder / "store")}
    follow = ("--follow", FOLLOW, "--cache", str(folder / "cache"), "--poll-s", "0.5")
    with ExitStack() as held:
        held.callback(mlflow.kill)
        starting = held.enter_context(ThreadPoolExecutor(1)).submit(mlflow.start)
        held.enter_context(running_ray(settings))
        starting.result()
        for place in versions.values():
            register(bundle := load_bundle(place), evaluation=find_evaluation(bundle))
        MlflowClient().set_registered_model_alias(SAMPLER, CHAMPION, "1")
        services = held.enter_context(
            starting_cluster(small_bundle_folder, **dict.fromkeys(PARTS, follow))
        )
        link = held.enter_context(slow_link(services.sampler.address))
        app = serving(services, sampler=link.address, workers=WORKERS, queue=QUEUE)
        yield Everything(held.enter_context(app), link, mlflow)


@pytest.fixture(scope="module")
def photos(versions: dict[str, Path]) -> list[Photo]:
    """One for each caller."""
    libraries = {release: Restorer.load(place) for release, place in versions.items()}
    options = RestoreOptions(seed=3, solver="ddim", realism=1, steps=4)
    return [
        photo(n, size, options, libraries) for n, size in enumerate([(96, 128), (64, 64), (40, 72)])
    ]


seeds = iter(range(1, 10_000))


def request(
    size: tuple[int, int] = (240, 280), *, steps: int = LONG, budget_ms: int | None = None
) -> restorer_pb2.RestoreRequest:
    """A request like no other."""
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return restorer_pb2.RestoreRequest(
        image=image_pb2.ImageSource(data=encode(Image.from_levels(levels), format="png")),
        options=restorer_pb2.RestoreOptions(steps=steps, seed=next(seeds)),
        time_budget_ms=budget_ms,
    )


def check(load: Load) -> None:
    """See that nobody noticed anything."""
    assert set(load.ends) == {"restored"}
    for answer in load.answers:
        answer.check()


def test_the_registry_dies_and_comes_back(cluster: Everything, photos: list[Photo]) -> None:
    load = Load(cluster.app.address)
    with load.on(photos):
        load.wait_for_whole(3)
        cluster.mlflow.kill()
        died = time.monotonic()
        time.sleep(2)  # some looks of each service
        load.wait_for_whole(6, after=died)
        cluster.mlflow.start()
        assert releases(load) == {OLD}
        cluster.promote(2)
        moved = time.monotonic()
        wait_until(lambda: NEW in releases(load), within_s=HEALTHY_S)
        load.wait_for_whole(6, after=moved)
    check(load)
    assert releases(load) == {OLD, NEW}


def releases(load: Load) -> set[str]:
    return {answer.restored.report.release for answer in list(load.answers)}


def test_a_slow_network_costs_time_and_nothing_else(
    cluster: Everything, photos: list[Photo]
) -> None:
    cluster.link.there_s = cluster.link.back_s = ADDED_S / 2
    load = Load(cluster.app.address)
    try:
        with load.on(photos):
            load.wait_for_whole(9)
    finally:
        cluster.link.there_s = cluster.link.back_s = 0.0
    check(load)
    assert min(load.seconds) > ADDED_S


def test_while_the_network_hangs_calls_end_at_their_deadlines(
    cluster: Everything, photos: list[Photo]
) -> None:
    promised = (DeadlineError, UnavailableError, OverloadedError)
    load = Load(cluster.app.address, accepted=promised, timeout_s=HURRY_S)
    with load.on(photos):
        load.wait_for_whole(3)
        cluster.link.hangs = True
        try:
            time.sleep(1.5 * HURRY_S)
        finally:
            cluster.link.hangs = False
        came = time.monotonic()
        load.wait_for_whole(6, after=came)
        took = time.monotonic() - came
    assert took < HEALTHY_S
    assert load.ends["DeadlineError"] >= len(photos), load.ends
    assert max(load.seconds) < HURRY_S + LATE_S
    for answer in load.answers:
        answer.check()
    cluster.wait_for_idleness()


def test_too_many_callers_are_told_when_to_come_back(
    cluster: Everything, photos: list[Photo]
) -> None:
    def code(_: int) -> str:
        try:
            cluster.app.stub.Restore(request((96, 128), steps=40), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            assert retry_delay_s(error) > 0
            return str(error.code().name)
        return "OK"

    def until_it_is_done(number: int) -> Answer:
        with RestorationClient(cluster.app.address, timeout_s=PATIENCE_S, tries=1000) as client:
            return ask(client, photos[number % len(photos)])

    with ThreadPoolExecutor(MANY) as pool:
        told = Counter(pool.map(code, range(MANY)))
        assert set(told) == {"OK", "RESOURCE_EXHAUSTED"}
        assert told["OK"] >= WORKERS + QUEUE
        for answer in pool.map(until_it_is_done, range(MANY)):
            answer.check()
    cluster.wait_for_idleness()


def retry_delay_s(error: grpc.Call) -> float:
    """Seconds after which whoever is refused should try again."""
    status = from_details(error.details() or "")
    assert status is not None, error.details()
    retry = RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    return float(retry.retry_delay.ToNanoseconds() / 1e9)


@pytest.mark.parametrize("way", ["stream", "call"])
def test_who_hangs_up_frees_his_place_and_disturbs_nobody(
    cluster: Everything, photos: list[Photo], way: str
) -> None:
    load, done = Load(cluster.app.address), cluster.ended("OK")
    with load.on(photos):
        load.wait_for_whole(3)
        for _ in range(HANGING_UP):
            begun, cancelled = cluster.long_begun(), cluster.ended("CANCELLED")
            call = stream(cluster) if way == "stream" else cluster.restore(PATIENCE_S)
            wait_until(lambda begun=begun: cluster.long_begun() > begun)
            call.cancel()
            wait_until(lambda old=cancelled: cluster.ended("CANCELLED") > old, within_s=LATE_S)
        load.wait_for_whole(3, after=time.monotonic())
    check(load)
    cluster.wait_for_idleness()
    assert cluster.ended("OK") == done + len(load.answers)


def stream(cluster: Everything) -> grpc.Call:
    """One of which some replies have come."""
    asked = request()
    call = cluster.app.stub.RestoreStream(
        restorer_pb2.RestoreStreamRequest(image=asked.image, options=asked.options),
        timeout=PATIENCE_S,
    )
    for _ in range(random.randrange(1, 20)):
        assert next(call).progress.share > 0
    return call


def test_who_has_too_little_time_is_told_so_in_time(
    cluster: Everything, photos: list[Photo]
) -> None:
    load, done = Load(cluster.app.address), cluster.ended("OK")
    begun, over = cluster.long_begun(), cluster.ended("CANCELLED", "DEADLINE_EXCEEDED")
    with load.on(photos):
        load.wait_for_whole(3)
        for how in ({"budget_ms": 1000}, {"timeout_s": 1.0}):
            began = time.monotonic()
            calls = [cluster.restore(**how) for _ in range(HURRIED)]
            for call in calls:
                error = call.exception(PATIENCE_S)
                assert isinstance(error, grpc.Call)
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert 1.0 <= time.monotonic() - began < 1.0 + LATE_S
        load.wait_for_whole(3, after=time.monotonic())
    check(load)
    cluster.wait_for_idleness()
    assert cluster.ended("OK") == done + len(load.answers)
    assert (
        cluster.ended("CANCELLED", "DEADLINE_EXCEEDED") - over == cluster.long_begun() - begun > 0
    )


def test_a_new_version_takes_over_and_what_is_under_way_ends_on_the_old_one(
    cluster: Everything, photos: list[Photo]
) -> None:
    """The last but one: what is deployed here goes to the sampler directly."""
    load, old, begun = Load(cluster.app.address), replicas(), cluster.long_begun()
    with load.on(photos):
        load.wait_for_whole(3)
        held = cluster.restore(steps=5)
        wait_until(lambda: cluster.long_begun() > begun)
        cluster.link.hangs = True
        try:
            address = cluster.app.cluster.sampler.address
            cluster.app.redeploy(sampler=address, workers=WORKERS, queue=QUEUE + 1)
            wait_until(lambda: capacities(cluster) == {WORKERS + QUEUE + 1}, within_s=PATIENCE_S)
            assert not held.done() and old <= replicas()
            assert cluster.restore(size=(40, 72), steps=1).result().result.report.steps == 1
        finally:
            cluster.link.hangs = False
        assert held.result().result.report.steps == 5
        load.wait_for_whole(6, after=time.monotonic())
    check(load)
    wait_until(lambda: not old & replicas(), within_s=PATIENCE_S)


def test_replicas_come_with_load_and_go_without(cluster: Everything, photos: list[Photo]) -> None:
    """As shipped, but with one picture for each replica and less patience; the last test."""
    load = Load(cluster.app.address)
    wait_until(lambda: len(replicas()) == 1, within_s=PATIENCE_S)
    cluster.app.rescale(
        target_ongoing_requests=1,
        upscale_delay_s=1,
        downscale_delay_s=1,
        look_back_period_s=2,
        metrics_interval_s=0.5,
    )
    with load.on(photos):
        wait_until(lambda: len(replicas()) > 1, within_s=PATIENCE_S)
        load.wait_for_whole(6, after=time.monotonic())
    check(load)
    wait_until(lambda: len(replicas()) == 1, within_s=PATIENCE_S)


def capacities(cluster: Everything) -> set[int]:
    """What some calls in a row are told of how many pictures are taken."""
    wanted = restorer_pb2.RestorerServiceInfoRequest()
    told = [cluster.app.stub.Info(wanted, timeout=PATIENCE_S) for _ in range(5)]
    return {info.service.queue_capacity for info in told}
