"""Prepare what a cluster that others start needs before it serves: ``python -m services.launcher.prepare``.

It gives a registry that has no champion its first one, and puts the champion's embedder into the bucket that is
Triton's model repository. What is there already stays, so it can be run at any time, such as after a promotion.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.main import read_settings
from services.common.registry import MlflowRegistry
from services.common.store import Store, StoreSettings, make_store
from services.launcher.plan import FOLLOW, MODELS
from services.launcher.seed import Seed
from vlmir.errors import InputError, OptionError, UnavailableError, VlmirError

__all__ = ["PrepareSettings", "main", "prepare"]

T = TypeVar("T")

MARK = "champion.txt"
"""File in a model repository, beside the models' folders: key of the version whose embedder it is."""

MOST_MARK_BYTES = 1000

_EVERY_S = 2.0


class PrepareSettings(BaseSettings):
    """Prepares registry and model repository. A flag wins over its variable, such as VLMIR_PREPARE_BUNDLE."""

    model_config = SettingsConfigDict(
        env_prefix="VLMIR_PREPARE_",
        cli_kebab_case=True,
        extra="ignore",
        frozen=True,
    )

    bundle: str = Field(
        "tiny",
        description="Name of a shipped bundle, or the path of a measured one's folder: what a registry that has no "
        "champion yet begins with.",
    )
    models: str = Field(
        "",
        description="Bucket of Triton's model repository, in the store of VLMIR_STORE_URL; without it: none.",
    )
    backend: Literal["onnxruntime", "python"] = Field(
        "onnxruntime",
        description="What runs the models in Triton; python is for a Triton without ONNX Runtime.",
    )
    wait_s: float = Field(
        300.0, ge=0, description="Seconds to wait for a registry that is starting."
    )


def prepare(settings: PrepareSettings) -> str:
    """Prepare registry and model repository.

    Returns:
        What is there now, in a sentence.

    Raises:
        OptionError: MLFLOW_TRACKING_URI or the store is not named.
        UnavailableError: One of them does not answer, or the bundle cannot be registered.
    """
    registry = MlflowRegistry(FOLLOW)
    store = _store(settings.models) if settings.models else None
    _patiently(registry.champion, settings.wait_s)
    with tempfile.TemporaryDirectory(prefix="vlmir-") as place:
        folder = Path(place)
        (folder / "logs").mkdir()
        seed = Seed(folder=folder, environment=dict(os.environ))
        champion = seed.champion(settings.bundle)
        said = f"the champion is {champion.name}, version {champion.number}"
        if store is not None:
            if _champion_in(store) != champion.key:
                seed.write_models(champion, settings.backend)
                _upload(folder / MODELS, store, champion.key)
            said += f"; its embedder is in s3://{store.bucket}"
    return said


def _store(bucket: str) -> Store:
    settings = StoreSettings.from_environment().model_copy(update={"bucket": bucket})
    store = make_store(settings)
    if store is None:
        raise OptionError("A model repository needs a store; name it by VLMIR_STORE_URL.")
    return store


def _patiently(ask: Callable[[], T], wait_s: float) -> T:
    end = time.monotonic() + wait_s
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() > end:
                raise
            time.sleep(_EVERY_S)


def _champion_in(store: Store) -> str:
    """Key of the version whose embedder is in the model repository; empty: of none."""
    try:
        return store.get(f"s3://{store.bucket}/{MARK}", MOST_MARK_BYTES).decode()
    except InputError:
        return ""


def _upload(folder: Path, store: Store, key: str) -> None:
    """Copy a repository's files into a bucket: first what the configurations name, then these, then whose they are.

    A version that is there is replaced by its like. Graphs that lie beside the models' folders stay here.
    """
    files = (path for path in folder.glob("*/**/*") if path.is_file())
    for file in sorted(files, key=lambda path: (path.name == "config.pbtxt", path)):
        store.put_named(file.relative_to(folder).as_posix(), file.read_bytes())
    store.put_named(MARK, key.encode(), "text/plain")


def main() -> int:
    """Command line.

    Returns:
        The exit status: 0 when all is there, 1 when it is not, 2 for bad settings.
    """
    settings = read_settings(PrepareSettings)
    if settings is None:
        return 2
    try:
        print(prepare(settings), flush=True)
    except VlmirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
