"""What restoring takes, measured in processes of their own, against what the planner says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be reset here"
)

# The first small picture brings in what a process takes once: libraries' code, not counted as a picture's.
MEASURE = """
import ctypes, json, re, sys
import numpy as np
from vlmir import Restorer, RestoreOptions

def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

height, width, precision, options = json.loads(sys.argv[1])
restorer = Restorer.load("tiny", device="cpu", precision=precision)
options = RestoreOptions(degradation="noisy", **options)
restorer.restore(np.zeros((64, 64, 3), np.uint8), options)
picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
restorer.restore(picture, options)
peak = 1024 * (kib("VmHWM") - before)
plan = restorer._plan(options)
print(json.dumps([peak, restorer._planner.need(height, width, plan).host]))
"""


def measured(height: int, width: int, precision: str, **options: object) -> tuple[int, int]:
    """Peak and prediction in bytes, above loaded weights."""
    asked = json.dumps([height, width, precision, options])
    out = subprocess.check_output([sys.executable, "-c", MEASURE, asked], text=True)
    peak, predicted = json.loads(out.splitlines()[-1])
    print(f"{width}×{height} {precision} {options}: {peak / 2**20:.0f} of {predicted / 2**20:.0f}")
    return peak, predicted


def assert_as_predicted(side: int, precision: str, runs: int, **options: object) -> None:
    """Where blocks come to lie, and what room is lost between them, differs by process: their mean is predicted."""
    found = [measured(side, side, precision, **options) for _ in range(runs)]
    peaks, predictions = zip(*found, strict=True)
    assert len(set(predictions)) == 1
    assert fmean(peaks) == pytest.approx(predictions[0], rel=0.15)


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize(("side", "runs"), [(1000, 4), (2000, 3)])
def test_the_peak_is_as_predicted(side: int, runs: int, precision: str) -> None:
    assert_as_predicted(side, precision, runs)


@pytest.mark.parametrize(("side", "runs"), [(1000, 3), (2000, 3)])
def test_a_sample_takes_what_is_predicted(side: int, runs: int) -> None:
    assert_as_predicted(side, "auto", runs, realism=0.5, steps=2)


def test_24_megapixels_take_at_most_2_gb() -> None:
    peak, predicted = measured(4000, 6000, "auto")
    assert peak <= 2e9
    assert peak == pytest.approx(predicted, rel=0.15)
