"""Following a registry: what is told of it, files damaged in the cache, and being stopped at the start."""

from __future__ import annotations

import asyncio
import base64
import gc
import http.server
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import weights as weights_module
from services.common.follower import Cache, Follower
from services.common.info import Load, service_info
from services.common.registry import MlflowRegistry, parted
from services.common.releases import Releases
from services.common.security import without_addresses
from services.common.settings import WeightsSettings
from services.common.telemetry.metrics import Metrics
from services.common.weights import observe_releases, weights
from services.sampler import server as sampler_server
from services.sampler.settings import SamplerSettings
from tests.integration.calls import metrics as scraped
from tests.unit.services.test_releases import Maker, Model, Shelf, variant
from vlmir.bundle import Bundle
from vlmir.compute import Compute
from vlmir.errors import UnavailableError
from vlmir.image import Limits
from vlmir.registry import SAMPLER

FOLLOW = f"models:/{SAMPLER}@champion"


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What the other tests' imports left need not be looked through at each sweep."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def shelf(small_bundle_folder: Path, tmp_path: Path) -> Shelf:
    return Shelf([variant(small_bundle_folder, tmp_path / "small-0").folder])


def follower(shelf: Shelf, releases: Releases[Model], cache: Path) -> Follower[Model]:
    return Follower(shelf, releases, part="sampler", cache=cache, poll_s=5)


# What is told.


@pytest.mark.parametrize(
    ("address", "clean", "secrets"),
    [
        ("http://host:5000", "http://host:5000", ()),
        ("https://anna:s%40fe@host:5000/a", "https://host:5000/a", ("anna", "s@fe")),
        ("https://anna@host", "https://host", ("anna", "")),
        ("http://a:b@c@[::1]:1", "http://[::1]:1", ("a", "b@c")),
        ("sqlite:///some/file.db", "sqlite:///some/file.db", ()),
    ],
)
def test_user_and_password_are_no_part_of_the_address(
    address: str, clean: str, secrets: tuple[str, ...]
) -> None:
    found, variables = parted(address)
    assert found == clean
    assert tuple(variables.values()) == secrets


class Refusing(http.server.BaseHTTPRequestHandler):
    """Remembers who asks, and has nothing for him."""

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Authorization"))  # type: ignore[attr-defined]
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.timeout(120)  # the first import of mlflow
def test_the_password_goes_to_the_registry_and_nowhere_else(
    refusing: http.server.ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    maker: Maker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("USERNAME", "PASSWORD"):  # what is set meanwhile is undone at the end
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        del os.environ[f"MLFLOW_TRACKING_{name}"]
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"http://anna:pass-word@127.0.0.1:{refusing.server_port}"
    )
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = MlflowRegistry(FOLLOW)
    with pytest.raises(UnavailableError) as refused:
        registry.champion()
    assert refusing.asked == ["Basic " + base64.b64encode(b"anna:pass-word").decode()]  # type: ignore[attr-defined]
    releases = maker.releases()
    Follower(registry, releases, part="sampler", cache=tmp_path, poll_s=5).look()
    told = f"{refused.value} {releases.refused} {caplog.text}"
    assert f"MLflow at http://127.0.0.1:{refusing.server_port} answers" in told
    assert "pass-word" not in told and "anna" not in told


@pytest.mark.parametrize(
    ("told", "public"),
    [
        ("MLflow at http://a:b@host:5000 does not answer.", "MLflow at … does not answer."),
        ("Triton at 10.0.0.7:8001 is away.", "Triton at … is away."),
        ("triton.internal:8001 is away", "… is away"),
        ("[::1]:8001 is away", "… is away"),
        ("/var/cache/vlmir/1-a cannot be written: full.", "… cannot be written: full."),
        ("No bundle at '/srv/x/y'.", "No bundle at '…'."),
        ("small-1@v1: 12 of 24 and/or (digest mismatch)", None),
    ],
)
def test_a_reason_for_everybody_has_no_addresses(told: str, public: str | None) -> None:
    assert without_addresses(told) == (public or told)


def test_what_info_says_of_a_refused_release_has_no_addresses(
    shelf: Shelf, maker: Maker, tmp_path: Path
) -> None:
    releases = maker.releases()
    following = follower(shelf, releases, tmp_path / "cache")
    maker.fault, maker.error = "load", UnavailableError("Triton at 10.0.0.7:8001 is away.")
    following.look()
    assert releases.refused == "small-0@v0: Triton at … is away."
    maker.error = ValueError("/srv/models/x is no graph")
    following.look()
    following.look()  # that of the cache, that of the registry
    assert releases.refused == "small-0@v0: … is no graph"


def test_a_digest_mismatch_shows_in_info_metrics_and_log(
    shelf: Shelf,
    small_bundle_folder: Path,
    maker: Maker,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shelf.folders.append(variant(small_bundle_folder, tmp_path / "small-1", shift=0.1).folder)
    weights_file = shelf.folders[1] / "sampler" / "model.safetensors"
    content = weights_file.read_bytes()
    weights_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    releases, metrics = maker.releases(), Metrics()
    observe_releases(metrics, releases)
    following = follower(shelf, releases, tmp_path / "cache")
    endpoint = metrics.serve("127.0.0.1", 0)
    port = int(endpoint.address.rpartition(":")[2])

    def look(number: int) -> tuple[str, str, float]:
        shelf.number = number
        following.look()
        info = service_info(releases, device="cpu", limits=Limits(), load=Load(0, 1))
        return info.release, info.refused_release, scraped(port)["vlmir_refused_release"]

    try:
        assert look(0) == ("small-0@v0", "", 0)
        release, refused, counted = look(1)
        assert (release, counted) == ("small-0@v0", 1)
        assert refused.startswith("small-1@v1: ") and "digest mismatch" in refused
        (told,) = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert refused in told.getMessage() and "small-0@v0 serves on" in told.getMessage()
        assert look(0) == ("small-0@v0", "", 0)
    finally:
        endpoint.close()


# The cache.


def test_what_does_not_load_from_the_cache_is_fetched_anew_once(
    shelf: Shelf, maker: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    follower(shelf, maker.releases(), cache).look()
    damage = cache / "sampler" / "0-abc" / "damaged"
    damage.touch()

    def load(bundle: Bundle) -> Model:
        if (bundle.folder / "damaged").exists() or maker.fault:
            raise RuntimeError("the graph is broken")
        return Model(bundle)

    # A new start finds it damaged where no digest tells.
    releases = Releases[Model]("sampler", load, maker.warm_up)
    following = follower(shelf, releases, cache)
    following.look()
    assert releases.refused == "small-0@v0: the graph is broken"
    assert not damage.exists() and "fetched anew" in caplog.text
    following.look()
    assert releases.names == ("small-0@v0",) and releases.refused == ""
    assert shelf.fetched == ["0", "0"]

    # And where the registry's own is broken, it is left at that.
    maker.fault = "load"
    releases = Releases[Model]("sampler", load, maker.warm_up)
    following = follower(shelf, releases, cache)
    for _ in range(4):
        following.look()
    assert releases.names == () and releases.refused == "small-0@v0: the graph is broken"
    assert shelf.fetched == ["0", "0", "0"]


def test_a_version_is_on_the_disk_before_it_has_its_name(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = list[str]()
    real = os.fsync

    def fsync(handle: int) -> None:
        assert not (tmp_path / "cache" / "sampler" / "0-abc").exists()
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    version = shelf.champion()
    assert version is not None
    bundle = Cache(tmp_path / "cache", "sampler").get(version, shelf)
    names = {path.partition("/bundle/")[2] for path in synced}
    expected = {str(p.relative_to(bundle.folder)) for p in bundle.folder.rglob("*")}
    assert expected and names >= expected


# Promotions.


def test_promotions_are_counted(shelf: Shelf, maker: Maker, tmp_path: Path) -> None:
    shelf.folders.append(variant(shelf.folders[0], tmp_path / "small-1", shift=1 / 64).folder)
    releases = maker.releases(linger_s=60)
    following = follower(shelf, releases, tmp_path / "cache")
    for number in (0, 1, 1, 0):
        shelf.number = number
        following.look()
    assert maker.loaded == ["small-0", "small-1"]
    assert releases.promotions == 2  # the first took nobody's place


# Being stopped at the start.


class Held:
    """A load that takes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, bundle: Bundle, compute: Compute | None = None) -> Model:
        self.begun.set()
        assert self.go.wait(20)
        raise UnavailableError("Too late.")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    monkeypatch.setattr(weights_module, "CLOSE_S", 0.05)
    held = Held()
    yield held
    held.go.set()


def test_the_wait_for_the_first_weights_ends_when_told_to_stop(
    held: Held, small_bundle_folder: Path
) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        settings = WeightsSettings(bundle=str(small_bundle_folder))
        async with weights(
            settings, part="sampler", load=held, warm_up=lambda _: None, stop=stop
        ) as releases:
            assert stop.is_set() and releases.names == ()

    began = time.monotonic()
    asyncio.run(main())
    assert held.begun.is_set() and time.monotonic() - began < 5


def test_so_does_the_wait_for_a_silent_registry(
    held: Held, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Silent(MlflowRegistry):
        def champion(self) -> None:
            held.begun.set()
            assert held.go.wait(20)

    monkeypatch.setattr(weights_module, "MlflowRegistry", Silent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        async with weights(
            WeightsSettings(follow=FOLLOW, cache=tmp_path),
            part="sampler",
            load=Model,
            warm_up=lambda _: None,
            stop=stop,
        ) as releases:
            assert held.begun.is_set() and releases.names == ()
            held.go.set()  # so that the end need not wait for the thread

    asyncio.run(asyncio.wait_for(main(), 10))


def test_sigterm_ends_a_server_that_is_still_loading(
    held: Held, small_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_server, "load_model", held)

    async def main() -> None:
        settings = SamplerSettings(port=0, bundle=str(small_bundle_folder), grace_s=0)
        serving = asyncio.create_task(sampler_server.serve(settings))
        await asyncio.to_thread(held.begun.wait, 20)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 5)

    asyncio.run(main())
