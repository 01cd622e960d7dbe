"""The command line with the shipped weights, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from vlmir.image import Image, decode, encode

pytestmark = pytest.mark.skipif(
    not resources.files("vlmir").joinpath("assets/tiny/bundle.json").is_file(),
    reason="the shipped weights are absent",
)


def vlmir(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlmir", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clean photo of 128×160 pixels and its noisy copy, made by ``vlmir degrade``."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.ascontiguousarray(data.astronaut()[:128, 150:310]).astype(np.float32) / 255
    clean, degraded = folder / "clean.png", folder / "noisy.png"
    clean.write_bytes(encode(Image(pixels=pixels)))
    chosen = ["--label", "noisy", "--strength", "0.5", "--seed", "1"]
    assert vlmir("degrade", clean, "-o", degraded, *chosen).returncode == 0
    return clean, degraded


def error(a: Path, b: Path) -> float:
    return float(np.square(decode(a.read_bytes()).pixels - decode(b.read_bytes()).pixels).mean())


def test_restore(noisy: tuple[Path, Path], tmp_path: Path) -> None:
    clean, degraded = noisy
    restored = tmp_path / "restored.png"
    done = vlmir("restore", degraded, "-o", restored, "--steps", "1", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["report"]["degradation"] == "noisy"
    assert error(restored, clean) < error(degraded, clean) / 4  # 6 dB


def test_inspect(noisy: tuple[Path, Path]) -> None:
    done = vlmir("inspect", noisy[1], "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["width"], told["height"]) == (160, 128)
    assert max(told["degradations"], key=told["degradations"].get) == "noisy"


def test_a_missing_bundle(noisy: tuple[Path, Path], tmp_path: Path) -> None:
    done = vlmir("restore", noisy[1], "-o", tmp_path / "out.png", "--bundle", tmp_path / "none")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr
