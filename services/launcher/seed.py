"""What a cluster needs of its registry before it can serve: a champion, and its models for Triton."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.registry import MlflowRegistry, Version
from services.launcher.plan import FOLLOW
from services.launcher.repository import Backend, Embedder
from services.launcher.settings import ROOT
from services.launcher.waiting import tail
from vlmir.errors import UnavailableError

__all__ = ["Seed"]


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Prepares a cluster whose registry answers; it runs commands of training, which it may not import."""

    folder: Path
    """The cluster's, or any other with a folder ``logs`` in it."""
    environment: Mapping[str, str]
    """Of its processes."""

    def champion(self, bundle: str) -> Version:
        """The champion; a bundle, by name or path, is registered and promoted if there is none.

        Raises:
            UnavailableError: It cannot be registered, or does not pass the gate.
        """
        registry = MlflowRegistry(FOLLOW, self._address)
        champion = registry.champion()
        if champion is None:
            self._run("training.register", bundle)
            self._run("training.promote")
            champion = registry.champion()
        if champion is None:
            raise UnavailableError(f"the registry has no champion; see {self._log}")
        return champion

    def embedder(self, champion: Version) -> Embedder:
        """The embedder of a version.

        Raises:
            UnavailableError: The registry does not answer, or does not say.
        """
        digest = MlflowRegistry(FOLLOW, self._address).digest("embedder", champion)
        return Embedder(champion.parts["embedder"], digest)

    def export(self, champion: Version, backend: Backend, out: Path) -> None:
        """Write a model repository with a version's embedder.

        Args:
            champion: The version of the sampler, which names the embedder's.
            backend: Triton's, that runs it.
            out: An empty folder.

        Raises:
            UnavailableError: It cannot be exported.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            bundle = f"{place}/bundle"
            self._run("training.fetch", champion.number, bundle)
            version = ("--version", champion.parts["embedder"])
            self._run("training.onnx_export", bundle, str(out), *version, "--backend", backend)

    @property
    def _address(self) -> str:
        return self.environment["MLFLOW_TRACKING_URI"]

    @property
    def _log(self) -> Path:
        return self.folder / "logs" / "seed.log"

    def _run(self, *command: str) -> None:
        with self._log.open("ab") as out:
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=self.environment,
                stdout=out,
                stderr=out,
            )
        if done.returncode:
            raise UnavailableError(f"python -m {' '.join(command)} failed:\n{tail(self._log)}")
