"""Lets Triton follow the registry: ``python -m services.launcher.models``, a process beside Triton.

Where the champion has another embedder than Triton's model repository names, it is exported and put there beside the
old one, and Triton loads it; what is being computed ends on the old one. A rollback finds its embedder there still.
Nothing changes while Triton does not answer, so one that starts anew finds what it had. A model that Triton cannot load
is taken out of the repository again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from services.common.main import read_settings
from services.common.registry import MlflowRegistry, Registry, Version
from services.common.settings import ProcessSettings
from services.common.telemetry.logs import configure_logging
from services.launcher.plan import FOLLOW
from services.launcher.repository import Backend, Embedder, ModelRepository, open_repository
from services.launcher.seed import Seed
from services.launcher.triton import Triton
from vlmir.errors import BundleError, UnavailableError, VlmirError

__all__ = ["ModelFollower", "ModelsSettings", "main"]

log = logging.getLogger("vlmir.models")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 900.0
"""Seconds until what failed is tried again: after each failure twice as many."""


class ModelsSettings(ProcessSettings):
    """Lets Triton follow the registry. A flag wins over its environment variable, such as VLMIR_MODELS."""

    triton: str = Field(description="host:port of Triton's gRPC side.")
    models: str = Field(
        description="Triton's model repository: a bucket in the store of VLMIR_STORE_URL, or the path of a folder, "
        "with a slash in it.",
    )
    models_backend: Backend = Field(
        "onnxruntime",
        description="What runs the models in Triton; python is for a Triton without ONNX Runtime.",
    )
    models_beat: Path | None = Field(
        None, description="File that is touched after each look, for a probe that asks its age."
    )
    poll_s: float = Field(5.0, gt=0, description="Seconds between two looks at the registry.")


class ModelFollower:
    """Lets a Triton have the champion's embedder.

    Args:
        registry: What says which version is the champion.
        repository: Triton's.
        triton: Address of its gRPC side.
        embedder: Which embedder a version has; it may ask the registry.
        export: Writes a model repository with a version's embedder into an empty folder.
    """

    def __init__(
        self,
        registry: Registry,
        repository: ModelRepository,
        triton: str,
        *,
        embedder: Callable[[Version], Embedder],
        export: Callable[[Version, Path], None],
    ) -> None:
        self._registry, self._repository, self._triton = registry, repository, triton
        self._embedder, self._export = embedder, export
        self._champion: tuple[str, Embedder] | None = None
        # What could not be exported, stored or loaded, why, when to try again, and how long the last pause was.
        self._failed: Embedder | None = None
        self._why: Exception = UnavailableError("")
        self._not_before, self._pause_s = 0.0, 0.0
        self._trouble = ""

    def run(self, poll_s: float, beat: Path | None, stop: threading.Event) -> None:
        """Look again and again until told to stop.

        Args:
            poll_s: Seconds between two looks.
            beat: File that is touched after each; None: none.
            stop: Ends it, within a look's time.
        """
        while not stop.is_set():
            self.look()
            if beat is not None:
                beat.touch()
            stop.wait(poll_s)

    def look(self) -> None:
        """Ask the registry once and do what it says. What fails is told once, and tried again at a later look."""
        try:
            self._follow()
        except VlmirError as error:
            self._tell(str(error))
        except Exception as error:  # whatever it is, Triton serves on, and so does following
            log.debug("because of", exc_info=True)
            self._tell(f"following the registry failed unexpectedly: {error!r}")
        else:
            if self._trouble:
                log.info("all is well again")
            self._trouble = ""

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("%s; trying again", trouble.rstrip("."))
        self._trouble = trouble

    def _follow(self) -> None:
        wanted, champion = self._wanted()
        if wanted != self._failed:
            self._failed, self._pause_s = None, 0.0
        elif time.monotonic() < self._not_before:
            raise self._why

        with Triton.connected(self._triton) as triton:
            has = triton.has(wanted)  # before anything changes: Triton must answer
            self._publish(wanted, champion)
            if not has:
                self._load(triton, wanted)
        self._failed = None

    def _publish(self, wanted: Embedder, champion: Version) -> None:
        begun = False

        def export(out: Path) -> None:
            nonlocal begun
            begun = True
            self._export(champion, out)

        try:
            if self._repository.publish(wanted, export):
                log.info("the models of embedder version %s are published", wanted.version)
        except Exception as error:
            if begun:  # also where the export was well, and could not be stored
                self._pause(wanted, error)
            raise

    def _wanted(self) -> tuple[Embedder, Version]:
        champion = self._registry.champion()
        if champion is None:
            raise UnavailableError("The registry names no version to serve.")
        if self._champion is None or self._champion[0] != champion.key:
            self._champion = champion.key, self._embedder(champion)
        return self._champion[1], champion

    def _load(self, triton: Triton, wanted: Embedder) -> None:
        try:
            triton.load()
        except BundleError as error:
            self._pause(wanted, error)
            if self._repository.withdraw():
                triton.load()  # one of the two may have been loaded
            raise
        log.info("Triton has embedder version %s", wanted.version)

    def _pause(self, embedder: Embedder, error: Exception) -> None:
        """Note that an embedder failed: exporting it again and again would keep a processor busy."""
        self._failed, self._why = embedder, error
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        self._not_before = time.monotonic() + self._pause_s


def follow(settings: ModelsSettings) -> None:
    """Follow the registry until SIGTERM or SIGINT.

    Raises:
        OptionError: MLFLOW_TRACKING_URI or the store is not named.
    """
    repository = open_repository(settings.models, settings.models_backend)
    registry = MlflowRegistry(FOLLOW)
    with tempfile.TemporaryDirectory(prefix="vlmir-") as place:
        folder = Path(place)
        (folder / "logs").mkdir()
        seed = Seed(folder=folder, environment=dict(os.environ))

        def export(version: Version, out: Path) -> None:
            seed.export(version, settings.models_backend, out)

        follower = ModelFollower(
            registry, repository, settings.triton, embedder=seed.embedder, export=export
        )
        log.info("Triton at %s follows %s by %s", settings.triton, FOLLOW, repository.place)
        follower.run(settings.poll_s, settings.models_beat, threading.Event())


def main() -> int:
    """Command line.

    Returns:
        The exit status: 0 when told to stop, 1 when it cannot begin, 2 for bad settings.
    """
    settings = read_settings(ModelsSettings)
    if settings is None:
        return 2
    configure_logging(settings.log_level, settings.log_format)
    # Whatever it is waiting for, a command or a store, ends; to publish again goes on where it was.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        follow(settings)
    except VlmirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
