"""Promotions of other embedders with a real Triton: the process that follows a real registry, and two embedders."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from tritonclient.grpc import InferenceServerClient

from services.common.probe import is_serving
from services.common.registry import MlflowRegistry, Version
from services.common.store import StoreSettings, open_store
from services.common.tensors import from_message
from services.embedder.server import SERVICE
from services.launcher.models import ModelFollower
from services.launcher.plan import FOLLOW
from services.launcher.repository import NAMES, Embedder, ModelRepository, open_repository
from tests.integration.calls import ROOT, exported, wait_until
from tests.integration.cluster import ServiceProcess
from tests.integration.test_embedder_service import asked, picture
from tests.integration.triton import RealTriton, needs_triton, running_triton, write_embedder
from tests.measured import measured_bundle
from tests.mlflow_server import MlflowServer
from tests.unit.services.s3 import needs_s3, s3_server
from training.register import register
from vlmir.bundle import Bundle
from vlmir.parts import build_embedder
from vlmir.registry import CHAMPION, SAMPLER
from vlmir.v1.embedder_pb2 import EmbedTextRequest
from vlmir.v1.embedder_pb2_grpc import EmbedderServiceStub

pytestmark = [needs_triton, pytest.mark.timeout(600)]

CAPTION = "a dog runs on the grass ."
PATIENCE_S = 300.0  # an export shares a processor with all that runs
PROMOTIONS = (2, 1, 2, 1, 3)


@dataclass
class Registry:
    """A registry with three versions, of which each has an embedder of its own."""

    server: MlflowServer
    client: MlflowClient
    bundles: dict[int, Bundle]

    def move(self, version: int) -> None:
        """What a hand does in MLflow's pages."""
        self.client.set_registered_model_alias(SAMPLER, CHAMPION, str(version))

    def embedder(self, version: Version) -> Embedder:
        digest = MlflowRegistry(FOLLOW, self.server.address).digest("embedder", version)
        return Embedder(version.parts["embedder"], digest)

    def export(self, version: Version, out: Path) -> None:
        number = int(version.number)
        write_embedder(out, self.bundles[number].folder, version=number)


@pytest.fixture(scope="module")
def registry(
    small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    place = tmp_path_factory.mktemp("server")
    server = MlflowServer(place)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", server.address)
            patch.setattr("training.register.export_onnx", lambda bundle: exported(bundle.folder))
            bundles = {}
            for number in (1, 2, 3):
                source = seeing_otherwise(small_bundle_folder, place / f"source-{number}", number)
                bundles[number] = measured_bundle(
                    source, place / f"small-{number}", psnr=20.0 * number, changed=("embedder",)
                )
                versions = register(bundles[number])
                assert versions["embedder"] == versions["sampler"] == str(number)
        yield Registry(server, MlflowClient(server.address, server.address), bundles)
    finally:
        server.kill()


def seeing_otherwise(source: Path, folder: Path, number: int) -> Path:
    """A copy of a bundle whose pictures' embeddings differ by the number, too; its digests are not right."""
    shutil.copytree(source, folder)
    file = folder / "embedder" / "model.safetensors"
    state = load_file(file)
    for name in (name for name in state if name.endswith("proj")):
        state[name] = state[name].roll(number, 0)
    save_file(state, file)
    return folder


@contextmanager
def following(registry: Registry, triton: RealTriton, place: Path) -> Iterator[None]:
    """What ``python -m services.launcher.models`` does, in a thread; exported in this process, which is quicker."""
    follower = ModelFollower(
        MlflowRegistry(FOLLOW),
        open_repository(str(place), "python"),
        triton.address,
        embedder=registry.embedder,
        export=registry.export,
    )
    stop = threading.Event()
    thread = threading.Thread(target=follower.run, args=(0.3, None, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def versions(triton: RealTriton) -> dict[str, set[str]]:
    """Model → versions that are loaded."""
    with InferenceServerClient(triton.address) as client:
        index = client.get_model_repository_index().models
    return {
        name: {one.version for one in index if one.name == name and one.state == "READY"}
        for name in NAMES
    }


def both(*numbers: int) -> dict[str, set[str]]:
    return {name: {str(number) for number in numbers} for name in NAMES}


@pytest.fixture
def place(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model repository with the first version, as `make up` makes it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.server.address)
    registry.move(1)
    champion = MlflowRegistry(FOLLOW).champion()
    assert champion is not None
    publish(open_repository(str(tmp_path / "triton"), "python"), registry, champion)
    return tmp_path / "triton"


def publish(repository: ModelRepository, registry: Registry, version: Version) -> None:
    repository.publish(registry.embedder(version), partial(registry.export, version))


@pytest.fixture
def triton(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    with running_triton(place, tmp_path_factory.mktemp("triton")) as found:
        yield found


@pytest.fixture
def embedders(
    registry: Registry, triton: RealTriton, tmp_path: Path
) -> Iterator[list[ServiceProcess]]:
    flags = ("--backend", "triton", "--triton", triton.address, "--follow", FOLLOW)
    flags += ("--poll-s", "0.3", "--cache", str(tmp_path / "cache"))
    bundle = registry.bundles[1].folder
    started = [ServiceProcess("embedder", bundle, *flags) for _ in range(2)]
    try:
        for one in started:
            one.start()
        for one in started:
            one.wait()
        yield started
    finally:
        for one in started:
            one.end()


@dataclass(frozen=True)
class Reply:
    """What one call was answered."""

    release: str
    f_I: Any
    f_T: Any


class Trickle:
    """Calls, one after the other, of each embedder; none may fail."""

    def __init__(self, embedders: list[ServiceProcess], request: Any) -> None:
        self._addresses = [one.address for one in embedders]
        self._request = request
        self.got: list[list[Reply]] = [[] for _ in embedders]
        self.stop = threading.Event()
        self.running: list[Future[None]] = []

    def __call__(self, number: int) -> None:
        with grpc.insecure_channel(self._addresses[number]) as channel:
            stub: Any = EmbedderServiceStub(channel)
            while not self.stop.is_set():
                image = stub.EmbedImage(self._request, timeout=30)
                text = stub.EmbedText(
                    EmbedTextRequest(text=CAPTION, release=image.release), timeout=30
                )
                assert text.release == image.release
                f_I, f_T = (
                    from_message(one, shape=(None,))
                    for one in (image.image_embedding, text.text_embedding)
                )
                self.got[number].append(Reply(image.release, f_I, f_T))
                time.sleep(0.02)

    def wait(self, version: int) -> None:
        """Return when both have served a version."""
        release = f"small-{version}@v{version}"

        def come() -> bool:
            for one in self.running:
                assert not one.done() or one.result()
            return all(got and got[-1].release == release for got in self.got)

        wait_until(
            come,
            within_s=PATIENCE_S,
            told=lambda: f"{release} did not come",
        )


@contextmanager
def trickling(embedders: list[ServiceProcess], request: Any) -> Iterator[Trickle]:
    """Calls while the block runs; they end, and none failed."""
    trickle = Trickle(embedders, request)
    with ThreadPoolExecutor(len(embedders)) as pool:
        trickle.running = [pool.submit(trickle, number) for number in range(len(embedders))]
        try:
            yield trickle
        finally:
            trickle.stop.set()
        for one in trickle.running:
            one.result()


def test_promotions_by_hand_are_followed_by_triton_and_not_noticed(
    registry: Registry,
    place: Path,
    triton: RealTriton,
    embedders: list[ServiceProcess],
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = {number: build_embedder(one) for number, one in registry.bundles.items()}
    request = asked(library[1].view_maker, picture(0))
    with following(registry, triton, place):
        with trickling(embedders, request) as trickle:
            trickle.wait(1)
            for version in PROMOTIONS:
                registry.move(version)
                trickle.wait(version)
        # The one before the champion is there for a rollback, and no other.
        assert versions(triton) == both(*PROMOTIONS[-2:])
        for name in NAMES:
            files = {path.name for path in (place / name).iterdir()}
            assert files == {"config.pbtxt", *map(str, PROMOTIONS[-2:])}
    assert not [one for one in caplog.records if one.name == "vlmir.models" and one.levelno > 20]

    # A Triton that dies comes back with what the repository holds, without anybody's help.
    triton.stop()
    triton.start()
    assert versions(triton) == both(*PROMOTIONS[-2:])
    wait_until(lambda: all(is_serving(one.address, SERVICE) for one in embedders))
    with trickling(embedders, request) as again:
        again.wait(PROMOTIONS[-1])

    expected = {
        f"small-{number}@v{number}": (
            one.embed_image(picture(0)).f_I.numpy(),
            one.embed_captions([CAPTION])[0].numpy(),
        )
        for number, one in library.items()
    }
    for one, other in itertools.combinations(expected.values(), 2):
        assert not np.allclose(one[0], other[0], atol=1e-3)
    for got in trickle.got:
        order = [int(release[-1]) for release, _ in itertools.groupby(r.release for r in got)]
        assert order == [1, *PROMOTIONS]
        for reply in got:
            f_I, f_T = expected[reply.release]
            np.testing.assert_allclose(reply.f_I, f_I, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(reply.f_T, f_T, rtol=1e-5, atol=1e-5)


def test_the_process_exports_what_is_promoted_and_ends_when_told(
    registry: Registry, place: Path, triton: RealTriton, tmp_path: Path
) -> None:
    log, beat = tmp_path / "log", tmp_path / "beat"
    flags = ("--triton", triton.address, "--models", str(place), "--models-backend", "python")
    flags += ("--poll-s", "0.3", "--models-beat", str(beat))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.launcher.models", *flags],
            cwd=ROOT,
            stdout=out,
            stderr=out,
        )
    try:
        wait_until(beat.exists, within_s=PATIENCE_S, told=log.read_text)
        assert versions(triton) == both(1)
        registry.move(2)
        loaded = "Triton has embedder version 2"
        wait_until(lambda: loaded in log.read_text(), within_s=PATIENCE_S, told=log.read_text)
        assert versions(triton) == both(1, 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert "WARNING" not in log.read_text()
    graph = place / "clip_image" / "2" / "model.onnx"
    assert graph.read_bytes() == exported(registry.bundles[2].folder)[0].data


def test_a_model_that_triton_cannot_load_is_taken_back(
    registry: Registry, place: Path, triton: RealTriton, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(version: Version, out: Path) -> None:
        registry.export(version, out)
        (out / "clip_text" / version.number / "model.onnx").write_bytes(b"broken")

    repository = open_repository(str(place), "python")
    follower = ModelFollower(
        MlflowRegistry(FOLLOW),
        repository,
        triton.address,
        embedder=registry.embedder,
        export=broken,
    )
    registry.move(2)
    for _ in range(3):
        follower.look()
    (warning,) = [one for one in caplog.records if one.name == "vlmir.models"]
    assert "Triton cannot load clip_text" in warning.getMessage()
    assert versions(triton) == both(1)
    current = repository.current()
    assert current is not None and current.version == "1"
    registry.move(1)
    follower.look()
    assert versions(triton) == both(1)


def test_a_repository_that_takes_nothing_is_not_exported_for_again_and_again(
    registry: Registry, place: Path, triton: RealTriton, caplog: pytest.LogCaptureFixture
) -> None:
    exports = list[str]()

    def counted(version: Version, out: Path) -> None:
        exports.append(version.number)
        registry.export(version, out)

    follower = ModelFollower(
        MlflowRegistry(FOLLOW),
        open_repository(str(place), "python"),
        triton.address,
        embedder=registry.embedder,
        export=counted,
    )
    in_the_way = place / "clip_image" / "2"
    in_the_way.touch()
    registry.move(2)
    for _ in range(3):
        follower.look()
    assert exports == ["2"]
    (warning,) = [one for one in caplog.records if one.name == "vlmir.models"]
    assert "cannot be written" in warning.getMessage()
    assert versions(triton) == both(1)


@needs_s3
def test_a_bucket_is_published_to_and_pruned_as_a_folder(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.server.address)
    with s3_server(tmp_path) as s3:
        for name, text in s3.items():
            monkeypatch.setenv(f"VLMIR_STORE_{name.upper()}", text)
        store = open_store(StoreSettings(bucket="models"))
        assert store is not None
        repository = open_repository("models", "python")
        for number in (1, 2, 3, 2):
            registry.move(number)
            champion = MlflowRegistry(FOLLOW).champion()
            assert champion is not None
            publish(repository, registry, champion)
            current = repository.current()
            assert current is not None and current.version == str(number)
        for name in NAMES:
            assert repository.versions(name) == {"2", "3"}
            assert f"{name}/3/model.py" in store.keys(name)
