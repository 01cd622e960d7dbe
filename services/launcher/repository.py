"""Triton's model repository: the embedder that is served, and the one before, in a folder or a bucket."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from services.common.store import Store, StoreSettings, make_store
from services.common.store.folder import FolderStore
from services.common.store.uri import BUCKET
from vlmir.errors import InputError, OptionError

__all__ = ["NAMES", "Backend", "Embedder", "ModelRepository", "embedder_of", "open_repository"]

Backend: TypeAlias = Literal["onnxruntime", "python"]

NAMES = ("clip_image", "clip_text")
"""The models of an embedder."""

_CONFIG = "config.pbtxt"
_MOST_CONFIG_BYTES = 1 << 20
_OTHERS = "others"
"""Parameter of a configuration: the other versions in the repository, as a JSON object digest → version."""


@dataclass(frozen=True)
class Embedder:
    """A registered embedder."""

    version: str
    """Of its registered model, and of its models in Triton."""
    digest: str
    """sha256 of its files."""


def embedder_of(config: Any) -> Embedder:
    """Which embedder a model's configuration (``ModelConfig`` of Triton's protocol) says it is of."""
    notes = config.parameters
    return Embedder(notes["version"].string_value, notes["embedder"].string_value)


class ModelRepository:
    """What Triton finds when it starts, or is told to load a model.

    ::

        <model>/config.pbtxt             the served version's, and which others are there
        <model>/<version>/model.onnx     and model.py for Triton's Python backend
        <model>/<version>/config.pbtxt   as it was exported; written last, so that a version that has it is whole

    Whatever happens in between, a configuration never names a version that is not whole, and to publish again goes on
    where it ended. Two may do it at once: they write the same.

    Args:
        store: Its bucket holds the repository and nothing else.
        backend: What runs the models in Triton.
    """

    def __init__(self, store: Store, backend: Backend) -> None:
        self._store, self._backend = store, backend

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"s3://{self._store.bucket}" if self._store.remote else self._store.bucket

    def current(self) -> Embedder | None:
        """The embedder that all configurations name; None where one does not, or is for another backend."""
        found = {
            embedder_of(config) if config is not None and config.backend == self._backend else None
            for config in map(self._parsed, NAMES)
        }
        return found.pop() if len(found) == 1 else None

    def publish(self, embedder: Embedder, export: Callable[[Path], None]) -> bool:
        """Let the repository serve an embedder; the one before stays beside it, older ones go.

        One that is there still is not exported again. Where its tensors are shaped otherwise than those of the one
        before, or another backend runs it, Triton cannot have both, and the one before goes, too.

        Args:
            embedder: What is to be served.
            export: Writes a model repository with this version of it into an empty folder.

        Returns:
            Whether it was another before.

        Raises:
            UnavailableError: The store does not answer, or refuses.
            Exception: What ``export`` raises; the repository has not changed.
        """
        if self.current() == embedder:
            self._prune()
            return False
        if not all(self._is_whole(name, embedder) for name in NAMES):
            with tempfile.TemporaryDirectory(prefix="vlmir-") as place:
                export(Path(place))
                for name in NAMES:
                    self._add(Path(place) / name, name, embedder.version)
        for name in NAMES:
            self._name(name, embedder)
        self._prune()
        return True

    def withdraw(self) -> bool:
        """Go back to the embedder before, and forget the current one: Triton cannot load it.

        Returns:
            Whether there was one before; else all stays as it is.
        """
        before = {name: self._others(name) for name in NAMES}
        if not all(before.values()):
            return False
        for name, others in before.items():
            (version,) = others.values()
            self._put(f"{name}/{_CONFIG}", self._text(f"{name}/{version}/{_CONFIG}").encode())
        self._prune()
        return True

    def versions(self, name: str) -> set[str]:
        """Versions of a model that are there, whole or not."""
        keys = (key.split("/") for key in self._store.keys(name))
        return {parts[1] for parts in keys if len(parts) == 3}

    def _is_whole(self, name: str, embedder: Embedder) -> bool:
        own = self._parsed(name, embedder.version)
        return own is not None and own.backend == self._backend and embedder_of(own) == embedder

    def _add(self, folder: Path, name: str, version: str) -> None:
        """Put a version's files there: Triton waits for ever for a model.py, a graph it only misses."""
        self._remove(name, version)  # half of it, or that of another registry
        files = sorted((folder / version).iterdir(), key=lambda path: path.suffix != ".py")
        for file in files:
            self._put(f"{name}/{version}/{file.name}", file.read_bytes())
        self._put(f"{name}/{version}/{_CONFIG}", (folder / _CONFIG).read_bytes())

    def _name(self, name: str, embedder: Embedder) -> None:
        """Let a model's configuration name an embedder, and the one that it named before."""
        top, own = self._parsed(name), self._parsed(name, embedder.version)
        if top is not None and embedder_of(top) == embedder and top.backend == own.backend:
            return
        others = dict[str, str]()
        if top is not None and _without_notes(top) == _without_notes(own):
            before = embedder_of(top)
            if before.version != embedder.version and self._is_whole(name, before):
                others = {before.digest: before.version}
        text = self._text(f"{name}/{embedder.version}/{_CONFIG}") + _note(
            _OTHERS, json.dumps(others)
        )
        self._put(f"{name}/{_CONFIG}", text.encode())

    def _prune(self) -> None:
        """Delete the versions that the configurations do not name."""
        for name in NAMES:
            config = self._parsed(name)
            if config is not None:
                kept = {embedder_of(config).version, *self._others(name).values()}
                for version in self.versions(name) - kept:
                    self._remove(name, version)

    def _remove(self, name: str, version: str) -> None:
        """Delete a version; what makes it whole goes first, what Triton waits for last."""
        keys = self._store.keys(f"{name}/{version}")
        order = {"pbtxt": 0, "onnx": 1}
        for key in sorted(keys, key=lambda key: order.get(key.rpartition(".")[2], 2)):
            self._store.delete(f"s3://{self._store.bucket}/{key}")

    def _others(self, name: str) -> Mapping[str, str]:
        config = self._parsed(name)
        text = config.parameters[_OTHERS].string_value if config is not None else ""
        found: dict[str, str] = json.loads(text or "{}")
        return found

    def _parsed(self, name: str, version: str = "") -> Any:
        """A model's configuration, or that of one of its versions; None where it is missing or none."""
        key = "/".join(filter(None, (name, version, _CONFIG)))
        try:
            return text_format.Parse(self._text(key), model_config_pb2.ModelConfig())
        except (InputError, text_format.ParseError):
            return None

    def _text(self, key: str) -> str:
        return self._store.get(f"s3://{self._store.bucket}/{key}", _MOST_CONFIG_BYTES).decode()

    def _put(self, key: str, data: bytes) -> None:
        self._store.put_named(key, data)


def _without_notes(config: Any) -> Any:
    bare = model_config_pb2.ModelConfig()
    bare.CopyFrom(config)
    bare.ClearField("parameters")
    return bare


def _note(key: str, text: str) -> str:
    return f'parameters [\n  {{ key: "{key}" value {{ string_value: {json.dumps(text)} }} }}\n]\n'


def open_repository(place: str, backend: Backend) -> ModelRepository:
    """The model repository at a place.

    Args:
        place: A folder's path, with a slash in it, or a bucket of the store that VLMIR_STORE_URL names.
        backend: What runs the models in Triton.

    Raises:
        OptionError: The store is not named, or wrongly, or the folder's name is none that a bucket could have.
    """
    if "/" in place:
        folder = Path(place).absolute()
        if not BUCKET.fullmatch(folder.name):
            raise OptionError(
                f"The folder of a model repository is named by small letters, digits, dots and hyphens, not "
                f"{folder.name!r}."
            )
        return ModelRepository(FolderStore(folder.parent, folder.name, (), {}), backend)
    settings = StoreSettings.from_environment().model_copy(update={"bucket": place})
    store = make_store(settings)
    if store is None:
        raise OptionError("A model repository needs a store; name it by VLMIR_STORE_URL.")
    return ModelRepository(store, backend)
