"""Prepare what a cluster that others start needs before it serves: ``python -m services.launcher.prepare``.

It gives a registry that has no champion its first one, and puts the champion's embedder into the bucket that is
Triton's model repository, so that Triton can start. From then on :mod:`services.launcher.models` follows promotions.
What is there already stays, so it can be run at any time.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.main import read_settings
from services.common.registry import MlflowRegistry
from services.launcher.plan import FOLLOW
from services.launcher.repository import Backend, open_repository
from services.launcher.seed import Seed
from vlmir.errors import UnavailableError, VlmirError

__all__ = ["PrepareSettings", "main", "prepare"]

T = TypeVar("T")

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
        description="Triton's model repository: a bucket in the store of VLMIR_STORE_URL, or the path of a folder, "
        "with a slash in it; without it: none.",
    )
    backend: Backend = Field(
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
    repository = open_repository(settings.models, settings.backend) if settings.models else None
    _patiently(registry.champion, settings.wait_s)
    with tempfile.TemporaryDirectory(prefix="vlmir-") as place:
        folder = Path(place)
        (folder / "logs").mkdir()
        seed = Seed(folder=folder, environment=dict(os.environ))
        champion = seed.champion(settings.bundle)
        said = f"the champion is {champion.name}, version {champion.number}"
        if repository is not None:
            repository.publish(
                seed.embedder(champion), partial(seed.export, champion, settings.backend)
            )
            said += f"; its embedder is in {repository.place}"
    return said


def _patiently(ask: Callable[[], T], wait_s: float) -> T:
    end = time.monotonic() + wait_s
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() > end:
                raise
            time.sleep(_EVERY_S)


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
