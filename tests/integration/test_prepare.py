"""The job that seeds a registry and Triton's model repository, with a real MLflow server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.registry import MlflowRegistry
from services.launcher.plan import FOLLOW
from tests.mlflow_server import MlflowServer

pytestmark = pytest.mark.timeout(600)  # it registers a bundle and exports its networks


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    found.start()
    try:
        yield found
    finally:
        found.kill()


def prepare(address: str, store: Path | None, *flags: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("VLMIR_", "MLFLOW_"))}
    variables |= {"MLFLOW_TRACKING_URI": address} if address else {}
    variables |= {"VLMIR_STORE_URL": str(store)} if store else {}
    return subprocess.run(
        [sys.executable, "-m", "services.launcher.prepare", *flags],
        env=variables,
        capture_output=True,
        text=True,
    )


def files(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_empty_registry_gets_a_champion_and_triton_its_models(
    server: MlflowServer, tmp_path: Path
) -> None:
    done = prepare(server.address, tmp_path, "--models", "models")
    assert done.returncode == 0, done.stderr
    champion = MlflowRegistry(FOLLOW, server.address).champion()
    assert champion is not None and champion.name in done.stdout
    version = champion.parts["embedder"]
    first = files(tmp_path / "models")
    order = (f"{version}/model.onnx", f"{version}/config.pbtxt", "config.pbtxt")
    assert set(first) == {
        f"{model}/{file}" for model in ("clip_image", "clip_text") for file in order
    }
    for model in ("clip_image", "clip_text"):  # what a configuration names is there before it
        times = [first[f"{model}/{file}"] for file in order]
        assert times == sorted(times)

    again = prepare(server.address, tmp_path, "--models", "models")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert files(tmp_path / "models") == first
    assert MlflowRegistry(FOLLOW, server.address).champion() == champion


@pytest.mark.parametrize(
    ("address", "flags", "status", "error"),
    [
        ("", (), 1, "Set MLFLOW_TRACKING_URI"),
        ("http://127.0.0.1:9", ("--wait-s", "0"), 1, "does not answer"),
        ("http://127.0.0.1:9", ("--wait-s", "0", "--models", "models"), 1, "VLMIR_STORE_URL"),
        ("http://127.0.0.1:9", ("--wait-s", "-1"), 2, "wait_s"),
    ],
)
def test_what_is_missing_is_said(
    address: str, flags: tuple[str, ...], status: int, error: str
) -> None:
    done = prepare(address, None, *flags)
    assert done.returncode == status and error in done.stderr
