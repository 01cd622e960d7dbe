"""Triton's model repository: what is published, kept and taken back; a real Triton reads it in tests/integration."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from services.common.registry import Version
from services.launcher.models import ModelFollower
from services.launcher.repository import NAMES, Embedder, ModelRepository, open_repository
from vlmir.errors import OptionError, UnavailableError

CONFIG = """\
name: "{name}"
backend: "{backend}"
input [ {{ name: "x" data_type: TYPE_FP32 dims: [{dim}] }} ]
version_policy {{ all {{ }} }}
parameters [
  {{ key: "version" value {{ string_value: "{version}" }} }},
  {{ key: "embedder" value {{ string_value: "{digest}" }} }}
]
"""
NOBODY = "127.0.0.1:9"


def embedder(version: int) -> Embedder:
    return Embedder(str(version), f"digest-{version}")


class Exports:
    """Writes a version as training does, and counts how often."""

    def __init__(self, backend: str = "onnxruntime", dim: int = 3) -> None:
        self.backend, self.dim, self.done = backend, dim, list[str]()

    def __call__(self, which: Embedder) -> Callable[[Path], None]:
        def export(out: Path) -> None:
            for name in NAMES:
                folder = out / name / which.version
                folder.mkdir(parents=True)
                (folder / "model.onnx").write_text(f"{name} of {which.digest}")
                if self.backend == "python":
                    (folder / "model.py").write_text("code")
                about = {"version": which.version, "digest": which.digest}
                text = CONFIG.format(name=name, backend=self.backend, dim=self.dim, **about)
                (out / name / "config.pbtxt").write_text(text)
            self.done.append(which.version)

        return export


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def repository(place: Path) -> ModelRepository:
    return open_repository(str(place), "onnxruntime")


@pytest.fixture
def exports() -> Exports:
    return Exports()


def notes(place: Path, name: str) -> dict[str, str]:
    """A configuration's parameters, as Triton reads them."""
    text = (place / name / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.name == name and config.version_policy.HasField("all")
    return {key: value.string_value for key, value in config.parameters.items()}


def folders(place: Path, name: str) -> set[str]:
    return {path.name for path in (place / name).iterdir() if path.is_dir()}


def assert_serves(place: Path, current: int, *others: int) -> None:
    for name in NAMES:
        assert folders(place, name) == {str(version) for version in (current, *others)}
        told = notes(place, name)
        assert (told["version"], told["embedder"]) == (str(current), f"digest-{current}")
        assert json.loads(told["others"]) == {f"digest-{other}": str(other) for other in others}
        for version in (current, *others):
            model = place / name / str(version) / "model.onnx"
            assert model.read_text() == f"{name} of digest-{version}"


def test_the_one_before_stays_and_older_ones_go(
    repository: ModelRepository, place: Path, exports: Exports
) -> None:
    assert repository.current() is None
    for version, before in ((1, ()), (2, (1,)), (3, (2,)), (7, (3,))):
        assert repository.publish(embedder(version), exports(embedder(version)))
        assert repository.current() == embedder(version)
        assert_serves(place, version, *before)
        assert not repository.publish(embedder(version), exports(embedder(version)))
    assert exports.done == ["1", "2", "3", "7"]


def test_a_rollback_exports_nothing(
    repository: ModelRepository, place: Path, exports: Exports
) -> None:
    for version in (1, 2, 1, 2):
        repository.publish(embedder(version), exports(embedder(version)))
    assert exports.done == ["1", "2"]
    assert_serves(place, 2, 1)
    repository.publish(embedder(1), exports(embedder(1)))
    assert_serves(place, 1, 2)


def test_an_export_that_fails_changes_nothing(
    repository: ModelRepository, place: Path, exports: Exports
) -> None:
    repository.publish(embedder(1), exports(embedder(1)))

    def export(out: Path) -> None:
        raise UnavailableError("no")

    with pytest.raises(UnavailableError):
        repository.publish(embedder(2), export)
    assert_serves(place, 1)


def test_what_was_interrupted_is_gone_on_with(
    repository: ModelRepository, place: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of its writes and deletions in turn; no configuration ever names what is not there."""
    for first in (1, 2):
        repository.publish(embedder(first), exports(embedder(first)))
    put, delete = repository._store.put_named, repository._store.delete
    cuts = 0
    for cut in range(100):
        left = cut

        def counted(then: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                return then(*arguments)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(repository._store, "put_named", counted(put))
            patch.setattr(repository._store, "delete", counted(delete))
            try:
                repository.publish(embedder(3), exports(embedder(3)))
                break
            except KeyboardInterrupt:
                cuts += 1
        for name in NAMES:
            told = notes(place, name)
            named = {told["version"], *json.loads(told["others"]).values()}
            assert all((place / name / version / "model.onnx").is_file() for version in named)
        repository.publish(embedder(3), exports(embedder(3)))
        assert_serves(place, 3, 2)
        repository.publish(embedder(2), exports(embedder(2)))
        repository.publish(embedder(1), exports(embedder(1)))
        repository.publish(embedder(2), exports(embedder(2)))
        assert_serves(place, 2, 1)
    assert cuts == 10  # for both models two files, a configuration and two deletions
    assert_serves(place, 3, 2)


def test_what_triton_cannot_load_is_taken_back(
    repository: ModelRepository, place: Path, exports: Exports
) -> None:
    repository.publish(embedder(1), exports(embedder(1)))
    assert not repository.withdraw()  # there is none before
    assert_serves(place, 1)
    repository.publish(embedder(2), exports(embedder(2)))
    assert repository.withdraw()
    assert repository.current() == embedder(1)
    for name in NAMES:
        assert folders(place, name) == {"1"}
        assert notes(place, name)["version"] == "1"
    repository.publish(embedder(3), exports(embedder(3)))
    assert_serves(place, 3, 1)


@pytest.mark.parametrize("other", [Exports(dim=4), Exports(backend="python")])
def test_what_triton_cannot_have_at_once_goes(
    repository: ModelRepository, place: Path, exports: Exports, other: Exports
) -> None:
    repository.publish(embedder(1), exports(embedder(1)))
    again = open_repository(str(place), other.backend)  # type: ignore[arg-type]
    assert again.publish(embedder(2), other(embedder(2)))
    assert_serves(place, 2)


def test_another_backend_of_the_same_embedder_is_exported_anew(
    repository: ModelRepository, place: Path, exports: Exports
) -> None:
    repository.publish(embedder(1), exports(embedder(1)))
    again = open_repository(str(place), "python")
    assert again.current() is None
    assert again.publish(embedder(1), Exports("python")(embedder(1)))
    assert_serves(place, 1)
    assert (place / "clip_text" / "1" / "model.py").is_file()


def test_the_same_number_of_another_registry_is_exported_anew(
    repository: ModelRepository, place: Path, exports: Exports
) -> None:
    other = Embedder("1", "digest-of-another")
    repository.publish(other, exports(other))
    repository.publish(embedder(1), exports(embedder(1)))
    assert exports.done == ["1", "1"]
    assert_serves(place, 1)


def test_a_folder_needs_a_name_that_a_bucket_could_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match="small letters"):
        open_repository(str(tmp_path / "My_Models"), "python")
    monkeypatch.delenv("VLMIR_STORE_URL", raising=False)
    with pytest.raises(OptionError, match="VLMIR_STORE_URL"):
        open_repository("models", "python")


# Following.


class Registry:
    """A registry whose champion is set by hand; None: it does not answer."""

    def __init__(self) -> None:
        self.number: int | None = 1

    def champion(self) -> Version | None:
        if self.number is None:
            raise UnavailableError("MLflow does not answer.")
        number = str(self.number)
        return Version(
            number=number, key=number, name="small", digest="", parts={"embedder": number}
        )

    def fetch(self, version: Version, part: str, folder: Path) -> None:
        raise AssertionError


def follower(registry: Registry, repository: ModelRepository, exports: Exports) -> ModelFollower:
    return ModelFollower(
        registry,
        repository,
        NOBODY,
        embedder=lambda version: embedder(int(version.number)),
        export=lambda version, out: exports(embedder(int(version.number)))(out),
    )


def test_while_triton_is_silent_nothing_changes_and_it_is_said_once(
    repository: ModelRepository, exports: Exports, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    followed = follower(Registry(), repository, exports)
    repository.publish(embedder(9), exports(embedder(9)))
    for _ in range(3):
        followed.look()
    assert_serves(place, 9)
    (record,) = [one for one in caplog.records if one.name == "vlmir.models"]
    assert f"Triton at {NOBODY} does not answer" in record.getMessage()


def test_a_silent_registry_is_said_once_each_time(
    repository: ModelRepository, exports: Exports, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry()
    followed = follower(registry, repository, exports)
    for registry.number in (None, None, 1, None):
        followed.look()
    said = [one.getMessage() for one in caplog.records if one.name == "vlmir.models"]
    assert [("MLflow" in one, "Triton" in one) for one in said] == [
        (True, False),
        (False, True),
        (True, False),
    ]


def test_after_each_look_it_gives_a_sign(
    repository: ModelRepository, exports: Exports, tmp_path: Path
) -> None:
    registry, stop, beat = Registry(), threading.Event(), tmp_path / "beat"
    registry.number = None
    followed = follower(registry, repository, exports)
    thread = threading.Thread(target=followed.run, args=(0.01, beat, stop))
    thread.start()
    try:
        for _ in range(500):
            if beat.exists():
                break
            stop.wait(0.01)
        assert beat.exists()
    finally:
        stop.set()
        thread.join()
