"""Which weights a service holds and lends, while another release comes, goes or turns out broken."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from services.common.follower import Cache, Follower
from services.common.registry import MlflowRegistry, Version, open_for
from services.common.releases import COSTLESS, Releases, parts_needed
from services.common.settings import ServerSettings, WeightsSettings
from services.common.weights import weights
from vlmir.bundle import Bundle, digest_of, load_bundle
from vlmir.config import load_preset
from vlmir.errors import BundleError, OptionError, ReleaseError, UnavailableError
from vlmir.parts import build_unet
from vlmir.registry import SAMPLER


class Model:
    """The sampler's network of the bundle it came from."""

    def __init__(self, bundle: Bundle) -> None:
        self.unet = build_unet(bundle)
        self.digest = bundle.digests["sampler"]
        self.warm = self.freed = False


@dataclass
class Maker:
    """Counts what is done to models, and breaks on demand."""

    loaded: list[str] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)
    fault: str = ""
    """Where to fail: ``load`` or ``warm-up``."""
    error: Exception = field(default_factory=lambda: RuntimeError("it is broken"))

    def load(self, bundle: Bundle) -> Model:
        self.loaded.append(bundle.release)
        if self.fault == "load":
            raise self.error
        return Model(bundle)

    def warm_up(self, model: Model) -> None:
        if self.fault == "warm-up":
            raise self.error
        model.warm = True

    def free(self, model: Model) -> None:
        model.freed = True
        self.freed.append(model.digest)

    def releases(self, linger_s: float = 0.0) -> Releases[Model]:
        return Releases("sampler", self.load, self.warm_up, self.free, linger_s=linger_s)


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


def variant(source: Path, folder: Path, *, shift: float = 0.0, steps: int = 1) -> Bundle:
    """A release of that folder's name, with a shifted sampler and another number of steps."""
    shutil.copytree(source, folder)
    about = json.loads((folder / "bundle.json").read_text("utf-8"))
    about["release"], about["preset"]["sampler"]["steps"] = folder.name, steps
    file = folder / "sampler" / "model.safetensors"
    save_file(
        {n: t + shift if t.is_floating_point() else t for n, t in load_file(file).items()}, file
    )
    about["digests"]["sampler"] = digest_of(folder, "sampler")
    (folder / "bundle.json").write_text(json.dumps(about), "utf-8")
    return load_bundle(folder)


@pytest.fixture(scope="module")
def bundles(small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Three releases whose samplers differ: small-0, small-1, small-2."""
    place = tmp_path_factory.mktemp("bundles")
    return [variant(small_bundle_folder, place / f"small-{n}", shift=n / 64) for n in range(3)]


def serve(releases: Releases[Model], *bundles: Bundle) -> None:
    for bundle in bundles:
        releases.serve(bundle.release, bundle)


# What is held and lent.


def test_nothing_is_lent_before_something_is_loaded(maker: Maker) -> None:
    releases = maker.releases()
    assert releases.names == ()
    with pytest.raises(UnavailableError, match="No weights are loaded"), releases.lease():
        pass


def test_a_lease_outlives_the_switch(maker: Maker, bundles: list[Bundle]) -> None:
    releases = maker.releases()
    serve(releases, bundles[0])
    with releases.lease() as old:
        serve(releases, bundles[1])
        releases.sweep()
        with releases.lease() as new, releases.lease("small-0") as again:
            assert (old.release, new.release) == ("small-0", "small-1")
            assert new.digests == bundles[1].digests
            assert again.model is old.model
        assert old.model.warm
        assert not old.model.freed
    releases.sweep()
    assert old.model.freed
    assert releases.names == ("small-1",)
    with pytest.raises(ReleaseError, match=r"'small-0' is not held here.*'small-1'"):
        releases.lease("small-0").__enter__()


def test_what_nobody_uses_leaves_the_memory(maker: Maker, bundles: list[Bundle]) -> None:
    releases = maker.releases()
    serve(releases, bundles[0])
    with releases.lease() as held:
        gone = weakref.ref(held.model.unet)
    del held
    serve(releases, bundles[1])
    assert gone() is not None
    releases.sweep()
    assert gone() is None
    assert maker.freed == [bundles[0].digests["sampler"]]


def test_an_old_release_lingers_from_its_last_use_on(maker: Maker, bundles: list[Bundle]) -> None:
    releases = maker.releases(linger_s=0.2)
    serve(releases, *bundles[:2])
    for _ in range(4):  # all the time, more than it lingers
        time.sleep(0.1)
        with releases.lease("small-0"):
            releases.sweep()
    assert releases.names == ("small-1", "small-0")
    time.sleep(0.25)
    releases.sweep()
    assert releases.names == ("small-1",)


def test_the_current_release_lingers_from_the_switch_on(
    maker: Maker, bundles: list[Bundle]
) -> None:
    releases = maker.releases(linger_s=0.2)
    serve(releases, bundles[0])
    time.sleep(0.25)
    serve(releases, bundles[1])
    releases.sweep()
    assert releases.names == ("small-1", "small-0")


def test_an_unchanged_part_is_shared(
    maker: Maker, bundles: list[Bundle], small_bundle_folder: Path, tmp_path: Path
) -> None:
    same = variant(small_bundle_folder, tmp_path / "same")
    releases = maker.releases()
    serve(releases, bundles[0], same)
    releases.sweep()
    # The old name costs nothing and stays, for the case that another service refuses the new one.
    with releases.lease() as new, releases.lease("small-0") as old:
        assert new.model is old.model
        assert (new.release, old.release) == ("same", "small-0")
    assert maker.loaded == ["small-0"]
    serve(releases, bundles[1])
    releases.sweep()
    assert releases.names == ("small-1",)
    assert maker.freed == [same.digests["sampler"]]


def test_names_that_cost_nothing_are_few(maker: Maker, bundles: list[Bundle]) -> None:
    releases = maker.releases()
    for number in range(20):
        releases.serve(f"@v{number}", bundles[0])
        releases.sweep()
    assert releases.names == tuple(f"@v{19 - n}" for n in range(COSTLESS + 1))


def test_the_same_weights_with_other_settings_are_not_shared(
    maker: Maker, bundles: list[Bundle], small_bundle_folder: Path, tmp_path: Path
) -> None:
    slower = variant(small_bundle_folder, tmp_path / "slower", steps=2)
    assert slower.digests == bundles[0].digests
    serve(maker.releases(), bundles[0], slower)
    assert maker.loaded == ["small-0", "slower"]


def test_going_back_to_what_is_held_is_immediate(maker: Maker, bundles: list[Bundle]) -> None:
    releases = maker.releases(linger_s=60)
    serve(releases, bundles[0], bundles[1], bundles[0])
    assert releases.names == ("small-0", "small-1")
    assert maker.loaded == ["small-0", "small-1"]


@pytest.mark.parametrize("fault", ["load", "warm-up"])
def test_a_failure_changes_nothing(maker: Maker, bundles: list[Bundle], fault: str) -> None:
    releases = maker.releases()
    serve(releases, bundles[0])
    maker.fault = fault
    with pytest.raises(RuntimeError, match="it is broken"):
        serve(releases, bundles[1])
    assert releases.names == ("small-0",)
    assert maker.freed == ([bundles[1].digests["sampler"]] if fault == "warm-up" else [])


def test_closing_frees_everything(maker: Maker, bundles: list[Bundle]) -> None:
    releases = maker.releases(linger_s=60)
    serve(releases, *bundles)
    releases.close()
    assert releases.names == ()
    assert len(maker.freed) == 3


def test_many_threads_lease_while_releases_come_and_go(maker: Maker, bundles: list[Bundle]) -> None:
    releases = maker.releases()
    digests = {bundle.release: bundle.digests["sampler"] for bundle in bundles}
    serve(releases, bundles[0])
    seen = set[str]()
    faults = list[str]()
    done = threading.Event()

    def request() -> None:
        while not done.is_set():
            with releases.lease() as held:
                name = held.release
                seen.add(name)
                with releases.lease(name) as again:  # another service of the same request
                    if again.model is not held.model or held.model.digest != digests[name]:
                        faults.append("mixed")
                time.sleep(0.001)
                if held.model.freed or not held.model.warm:
                    faults.append("freed in use or not warm")

    threads = [threading.Thread(target=request) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 10):
        serve(releases, bundles[number % 3])
        releases.sweep()
    done.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert seen == {*digests}
    releases.sweep()
    assert releases.names == ("small-0",)


# Following a registry.


@dataclass
class Shelf:
    """A registry in memory."""

    folders: list[Path]
    number: int | None = 0
    silent: bool = False
    breaks_off: bool = False
    fetched: list[str] = field(default_factory=list)

    def champion(self) -> Version | None:
        if self.silent:
            raise UnavailableError("The registry does not answer.")
        if self.number is None:
            return None
        bundle = load_bundle(self.folders[self.number], parts=())
        return Version(
            number=str(self.number),
            key=f"{self.number}-abc",
            name=bundle.release,
            digest=bundle.digests["sampler"],
            parts={"sampler": str(self.number)},
        )

    def fetch(self, version: Version, part: str, folder: Path) -> None:
        self.fetched.append(version.number)
        source = self.folders[int(version.number)]
        shutil.copyfile(source / "bundle.json", folder / "bundle.json")
        if self.breaks_off:
            raise UnavailableError("The connection broke.")
        shutil.copytree(source / part, folder / part)


@pytest.fixture
def shelf(bundles: list[Bundle]) -> Shelf:
    return Shelf([bundle.folder for bundle in bundles])


Follow = Callable[..., tuple[Follower[Model], Releases[Model]]]


@pytest.fixture
def follow(maker: Maker, shelf: Shelf, tmp_path: Path) -> Follow:
    """Makes a follower that looks when it is told to."""

    def make(linger_s: float = 0.0, stand_in: str = "") -> tuple[Follower[Model], Releases[Model]]:
        releases = maker.releases(linger_s)
        follower = Follower(
            shelf, releases, part="sampler", cache=tmp_path, poll_s=5, stand_in=stand_in
        )
        return follower, releases

    return make


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "sampler").iterdir() if path.is_dir()}


def test_the_follower_switches_when_the_alias_moves(
    follow: Follow, shelf: Shelf, maker: Maker, tmp_path: Path
) -> None:
    follower, releases = follow()
    follower.look()
    follower.look()
    assert releases.names == ("small-0@v0",)
    for number in (1, 2, 1):
        shelf.number = number
        follower.look()
        assert releases.names == (f"small-{number}@v{number}",)
    assert shelf.fetched == ["0", "1", "2"]  # going back took it from the cache
    assert cached(tmp_path) == {"1-abc", "2-abc"}


def test_what_is_held_stays_in_the_cache(
    follow: Follow, shelf: Shelf, maker: Maker, tmp_path: Path
) -> None:
    follower, releases = follow(linger_s=60)
    for number in (0, 1, 2, 0):
        shelf.number = number
        follower.look()
    assert releases.names == ("small-0@v0", "small-2@v2", "small-1@v1")
    assert cached(tmp_path) == {"0-abc", "1-abc", "2-abc"}
    assert maker.loaded == ["small-0", "small-1", "small-2"]


@pytest.mark.parametrize("fault", ["load", "warm-up"])
def test_a_broken_release_is_refused_once(
    follow: Follow, shelf: Shelf, maker: Maker, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    follower, releases = follow()
    follower.look()
    shelf.number, maker.fault = 1, fault
    follower.look()
    follower.look()
    assert releases.refused == "small-1@v1: it is broken"
    assert releases.names == ("small-0@v0",)
    assert maker.loaded == ["small-0", "small-1"]
    assert caplog.messages == ["refused small-1@v1: it is broken (small-0@v0 serves on)"]
    shelf.number = 0
    follower.look()
    assert releases.refused == ""
    shelf.number, maker.fault = 1, ""
    follower.look()  # the alias moved again: another try
    assert releases.names == ("small-1@v1",)


def test_a_damaged_file_is_refused(
    follow: Follow, shelf: Shelf, tmp_path: Path, small_bundle_folder: Path
) -> None:
    damaged = variant(small_bundle_folder, tmp_path / "damaged", shift=1)
    file = damaged.file("sampler", "model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    shelf.folders.append(damaged.folder)
    follower, releases = follow()
    follower.look()
    shelf.number = 3
    follower.look()
    follower.look()
    assert "damaged@v3" in releases.refused
    assert "digest mismatch" in releases.refused
    assert releases.names == ("small-0@v0",)
    assert shelf.fetched == ["0", "3"]
    assert cached(tmp_path) == {"0-abc"}


def test_other_weights_than_the_registry_names_are_refused(bundles: list[Bundle]) -> None:
    with pytest.raises(BundleError, match="another sampler than the registry"):
        open_for("sampler", bundles[0].folder, sampler=bundles[1].digests["sampler"])


def test_what_may_heal_is_tried_again(
    follow: Follow, shelf: Shelf, maker: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    follower, releases = follow()
    follower.look()
    shelf.number, shelf.breaks_off = 1, True
    follower.look()
    follower.look()
    assert releases.refused == "small-1@v1: The connection broke."
    assert cached(tmp_path) == {"0-abc"}  # nothing half done
    assert caplog.text.count("The connection broke") == 1
    shelf.breaks_off = False
    maker.fault, maker.error = "load", UnavailableError("Triton is away.")
    follower.look()
    assert releases.refused == "small-1@v1: Triton is away."
    maker.fault = ""
    follower.look()
    assert releases.names == ("small-1@v1",)
    assert releases.refused == ""


def test_an_old_release_that_is_asked_for_comes_back(follow: Follow, shelf: Shelf) -> None:
    follower, releases = follow(linger_s=0.1)
    for number in (0, 1):
        shelf.number = number
        follower.look()
    time.sleep(0.15)
    follower.look()
    assert releases.names == ("small-1@v1",)
    with pytest.raises(UnavailableError), releases.lease("../small-0@v0"):
        pass
    follower.look()
    assert releases.names == ("small-1@v1",)  # nobody knows that one
    with pytest.raises(UnavailableError), releases.lease("small-0@v0"):
        pass
    follower.look()
    assert releases.names == ("small-1@v1", "small-0@v0")
    with releases.lease("small-0@v0") as old, releases.lease() as current:
        assert (old.release, current.release) == ("small-0@v0", "small-1@v1")
    time.sleep(0.15)
    follower.look()
    assert releases.names == ("small-1@v1",)


def test_a_release_that_cannot_be_remembered_is_served(
    follow: Follow, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "sampler" / "served" / "in the way").mkdir(parents=True)
    follower, releases = follow()
    follower.look()
    assert releases.names == ("small-0@v0",)
    assert releases.refused == ""
    assert "a restart without the registry will not find small-0@v0" in caplog.text


def test_a_silent_registry_changes_nothing_and_is_said_once(
    follow: Follow, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlmir")
    follower, releases = follow()
    follower.look()
    for _ in range(2):
        shelf.silent = True
        follower.look()
        follower.look()
        shelf.silent = False
        follower.look()
    assert releases.names == ("small-0@v0",)
    assert caplog.text.count("The registry does not answer") == 2
    assert caplog.text.count("answers again") == 2
    shelf.number = None
    follower.look()
    assert releases.names == ("small-0@v0",)


def test_without_a_registry_the_cache_stands_in(
    follow: Follow, shelf: Shelf, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first, _ = follow()
    for number in (0, 2):
        shelf.number = number
        first.look()
    shelf.silent = True
    follower, releases = follow(stand_in="tiny")
    follower.look()
    assert releases.names == ("small-2@v2",)
    assert "serving small-2@v2 of the cache" in caplog.text
    shelf.silent = False
    follower.look()
    assert releases.names == ("small-2@v2",)
    assert shelf.fetched == ["0", "2"]

    weights = tmp_path / "sampler" / "2-abc" / "sampler" / "model.safetensors"
    weights.write_bytes(b"damaged")
    shelf.silent = True
    follower, releases = follow(stand_in="tiny")
    follower.look()
    assert "the cache cannot stand in" in caplog.text
    assert releases.names == (load_bundle("tiny", parts=()).release,)
    shelf.silent = False
    follower.look()
    assert releases.names == ("small-2@v2",)
    assert shelf.fetched == ["0", "2", "2"]  # again, since it was damaged here


def test_with_nothing_at_all_it_waits(
    follow: Follow, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.silent = True
    follower, releases = follow()
    follower.look()
    follower.look()
    assert releases.names == ()
    assert caplog.text.count("nothing is served yet") == 1
    shelf.silent = False
    follower.look()
    assert releases.names == ("small-0@v0",)


def test_a_stand_in_that_cannot_load_yet_is_tried_again(
    follow: Follow, shelf: Shelf, maker: Maker, bundles: list[Bundle]
) -> None:
    shelf.silent = True
    maker.fault, maker.error = "load", UnavailableError("Triton is away.")
    follower, releases = follow(stand_in=str(bundles[1].folder))
    follower.look()
    maker.fault = ""
    follower.look()
    assert releases.names == ("small-1",)


def test_a_broken_first_release_lets_the_bundle_stand_in(
    follow: Follow, maker: Maker, shelf: Shelf, bundles: list[Bundle]
) -> None:
    shelf.number = 1
    follower, releases = follow(stand_in=str(bundles[0].folder))
    real = maker.load

    def load(bundle: Bundle) -> Model:
        if bundle.release == "small-1":
            raise RuntimeError("it is broken")
        return real(bundle)

    releases._load = load
    follower.look()
    assert releases.names == ("small-0",)
    assert releases.refused == "small-1@v1: it is broken"


def test_it_follows_in_a_thread_that_survives_and_stops(follow: Follow, shelf: Shelf) -> None:
    follower, releases = follow()
    follower._poll_s = 0.01
    follower.start()
    follower.wait()
    assert releases.names == ("small-0@v0",)
    shelf.number = 99  # an index that is not there: an error nobody thought of
    time.sleep(0.05)
    shelf.number = 1
    end = time.monotonic() + 5
    while releases.names[0] != "small-1@v1":
        assert time.monotonic() < end
        time.sleep(0.01)
    follower.stop()
    assert "vlmir-follower" not in {thread.name for thread in threading.enumerate()}


def test_the_cache_forgets_what_a_killed_process_left(shelf: Shelf, tmp_path: Path) -> None:
    cache = Cache(tmp_path, "sampler")
    cache.prune(set())  # there is no folder yet
    version = shelf.champion()
    assert version is not None
    cache.get(version, shelf)
    for name in (".partial-new", ".partial-old"):
        (tmp_path / "sampler" / name).mkdir()
    cache._STALE_S = -1.0
    cache.prune(set())
    assert cached(tmp_path) == {"0-abc"}


# Settings.


def test_a_part_needs_its_files_and_an_embedder_its_words() -> None:
    tiny, base = load_preset("tiny"), load_preset("base")
    assert parts_needed(tiny, "captioner") == ("captioner",)
    assert parts_needed(tiny, "sampler") == ("sampler",)
    assert parts_needed(tiny, "embedder") == ("captioner", "embedder")
    assert parts_needed(base, "embedder") == ("embedder",)


def test_weights_of_one_bundle(maker: Maker, bundles: list[Bundle], tmp_path: Path) -> None:
    only = tmp_path / "only"
    shutil.copytree(bundles[1].folder, only, ignore=shutil.ignore_patterns("captioner", "embedder"))

    async def main() -> None:
        async with weights(
            WeightsSettings(bundle=str(only)),
            part="sampler",
            load=maker.load,
            warm_up=maker.warm_up,
            free=maker.free,
        ) as releases:
            with releases.lease() as held:
                assert held.release == "small-1"
                assert held.digests == bundles[1].digests
        assert held.model.freed

    asyncio.run(main())


def test_weights_of_no_bundle(maker: Maker, tmp_path: Path) -> None:
    async def main(bundle: Path) -> None:
        async with weights(
            WeightsSettings(bundle=str(bundle)),
            part="sampler",
            load=maker.load,
            warm_up=maker.warm_up,
        ):
            pass

    with pytest.raises(BundleError, match="No bundle at"):
        asyncio.run(main(tmp_path))


def test_following_wants_a_server_and_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(OptionError, match="MLFLOW_TRACKING_URI"):
        MlflowRegistry(f"models:/{SAMPLER}@champion")
    with pytest.raises(OptionError, match="not 'models:/other@champion'"):
        MlflowRegistry("models:/other@champion", "http://127.0.0.1:1")


def test_settings_mix_with_a_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Settings(ServerSettings, WeightsSettings):
        pass

    monkeypatch.setenv("VLMIR_FOLLOW", f"models:/{SAMPLER}@champion")
    monkeypatch.setenv("VLMIR_PORT", "1234")
    settings = Settings()
    assert (settings.follow, settings.port) == (f"models:/{SAMPLER}@champion", 1234)
    assert settings.poll_s == 5
    with pytest.raises(ValueError, match="follow"):
        Settings(follow="models:/other@champion")
