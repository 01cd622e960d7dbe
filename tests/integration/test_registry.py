"""Registry and gate with a real MLflow server, and an alias moved as its UI moves it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.measured import measured_bundle
from training import promote
from training.fetch import fetch_bundle
from training.register import find_evaluation, register
from training.release.registry import SAMPLER, aliases, connect, find_version
from vlmir.bundle import Bundle

pytestmark = pytest.mark.timeout(400)  # the server alone may take half a minute to start

STARTS_WITHIN_S = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with an empty database, artifacts behind it."""
    place = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{place}/mlflow.db"]
    command += ["--artifacts-destination", str(place / "files")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | quiet
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    with process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, place / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"MLflow's server did not start: {log.read_text()}")


def ui(server: str, what: str, body: dict[str, Any]) -> Any:
    """A call as the UI makes it."""
    request = urllib.request.Request(
        f"{server}/ajax-api/2.0/mlflow/{what}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def text(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return str(answer.read().decode())


def add(source: Path, folder: Path, psnr: float) -> Bundle:
    bundle = measured_bundle(source, folder, psnr=psnr, changed=("sampler",))
    register(bundle, evaluation=find_evaluation(bundle))
    return bundle


def test_register_promote_by_hand_and_back(
    server: str,
    small_bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.chdir(tmp_path)
    client = connect()
    first = add(small_bundle_folder, tmp_path / "small-1", 26.0)
    assert promote.promote()
    second = add(first.folder, tmp_path / "small-2", 26.5)
    assert promote.promote()
    assert aliases(client) == {"candidate": "2", "champion": "2", "previous": "1"}
    assert fetch_bundle("champion", tmp_path / "champion").digests == second.digests

    # What the UI shows of a version: its signature, the card, the files.
    asked = f"path=MLmodel&name={SAMPLER}&version=2"
    assert '"name": "f_D"' in text(f"{server}/model-versions/get-artifact?{asked}")
    version = find_version(client, 2)
    assert version.description.startswith("# Small")
    model = version.source.removeprefix("models:/")
    logged = f"{server}/ajax-api/2.0/mlflow/logged-models/{model}"
    listed = json.loads(text(f"{logged}/artifacts/directories"))["files"]
    assert {"bundle.json", "evaluation.json", "sampler"} <= {file["path"] for file in listed}

    # The UI's alias dialog, on version 1; then the commands go on from there.
    move = {"name": SAMPLER, "alias": "champion", "version": "1"}
    assert ui(server, "registered-models/alias", move) == {}
    assert fetch_bundle("champion", tmp_path / "by-hand").digests == first.digests
    assert not promote.rollback()  # it was rolled back already
    assert promote.promote(2)
    assert ui(server, "registered-models/alias", move) == {}
    add(first.folder, tmp_path / "small-3", 25.5)
    capsys.readouterr()
    assert not promote.promote()
    assert "26.00 → 25.50 dB" in capsys.readouterr().out  # compared with what the hand chose
    assert promote.promote(force="to see it")
    assert aliases(client) == {"candidate": "3", "champion": "3", "previous": "1"}
    assert promote.rollback()
    assert aliases(client) == {"candidate": "3", "champion": "1", "previous": "3"}
