"""The embedded server as a user starts it: a process of its own, with the shipped weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vlmir.client import ClientProgress, RestorationClient
from vlmir.image import Image, decode, encode
from vlmir.pipeline import RestoreOptions, Restorer

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "services.restorer.embedded", "--port", "0"]

needs_weights = pytest.mark.skipif(
    not (ROOT / "vlmir/assets/tiny/bundle.json").exists(), reason="no weights in vlmir/assets/tiny"
)


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        COMMAND, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    with started:
        try:
            yield started
        finally:
            started.kill()


@pytest.fixture(scope="module")
def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving "), line
    return line.split()[-1]


@pytest.fixture(scope="module")
def noisy() -> bytes:
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 215, 96)[None, :, None] + np.zeros((64, 1, 3))
    levels = np.clip(ramp + rng.normal(0, 50, ramp.shape), 0, 255).astype(np.uint8)
    return encode(Image.from_levels(levels), format="png")


@needs_weights
def test_it_gives_the_librarys_pixels(address: str, noisy: bytes) -> None:
    options = RestoreOptions(seed=1, steps=2, realism=0.5)
    heard: list[ClientProgress] = []
    with RestorationClient(address) as client:
        served = client.stream(noisy, options, on_progress=heard.append, previews=True)
        unary = client.restore(noisy, options)
        info = client.info()
    restored = Restorer.load("tiny").restore(noisy, options)
    expected = decode(restored.encode())
    for got in (served, unary):
        difference = np.abs(decode(got.image_bytes).pixels - expected.pixels)
        assert difference.max() <= 1.001 / 255
    assert served.report.release == info.release == restored.report.release
    assert served.report.digests == info.digests == restored.report.digests
    assert heard and heard[-1].step == heard[-1].steps
    assert all(progress.preview for progress in heard)


@needs_weights
def test_it_ends_gracefully(process: subprocess.Popen[str], address: str) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


def test_a_bad_setting_is_told_in_one_line() -> None:
    done = subprocess.run(
        [*COMMAND, "--workers", "0"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: workers: ")


def test_a_missing_bundle_is_told_in_one_line() -> None:
    done = subprocess.run(
        [*COMMAND, "--bundle", "/no/such/folder"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "/no/such/folder" in done.stderr
    assert "Traceback" not in done.stderr
