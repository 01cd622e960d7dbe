"""``vlmir bench --server`` against a server in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmir.bench import service
from vlmir.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(small_bundle_folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "services.restorer.embedded", "--port", "0", "--queue", "2"]
    with subprocess.Popen(
        [*command, "--bundle", str(small_bundle_folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line.startswith("serving "), line
        try:
            yield line.split()[-1]
        finally:
            started.kill()


def test_a_server_is_loaded_by_more_and_more_clients(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CLIENTS", (1, 3))
    monkeypatch.setattr("vlmir.cli.benchmark._SIDE", 32)
    out = tmp_path / "bench.json"
    assert main(["bench", "--server", address, "--requests", "6", "--json", str(out)]) == 0
    measured = json.loads(out.read_text("utf-8"))[f"{address} by clients at once, 32²"]
    assert set(measured) == {"1 clients", "3 clients"}
    for numbers in measured.values():
        assert 0 < numbers["p50_ms"] <= numbers["p95_ms"] <= numbers["p99_ms"]
        assert numbers["megapixels_per_s"] == pytest.approx(numbers["images_per_s"] * 32**2 / 1e6)


def test_a_server_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--server", "127.0.0.1:9", "--timeout", "1"]) == 1
    assert "vlmir bench: error: " in capsys.readouterr().err
