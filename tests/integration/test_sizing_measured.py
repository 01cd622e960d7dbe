"""What the sizing reckons with is what the shipped weights do when they are measured on this machine."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from deploy.sizing import Load, size
from deploy.sizing.costs import FILE
from deploy.sizing.measure import measure

SECONDS = ("network_s_per_megapixel", "caption_s", "embed_s")
COUNTED = ("network_gflop_per_megapixel", "embed_gflop")
WITHIN = 12
"""Machines differ by as much, and so do busy ones and quiet ones: a wrong unit would be off by a thousand."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    return measure("tiny", rounds=1)


@pytest.fixture(scope="module")
def stated() -> dict[str, float]:
    costs = tomllib.loads(Path(FILE).read_text("utf-8"))
    tiny = {**costs["processor"]["tiny"], **costs["operations"]["tiny"]}
    return {
        **tiny,
        **{name: costs["transport"][name] for name in costs["transport"] if name != "source"},
    }


def test_operations_are_those_that_are_counted(
    measured: dict[str, float], stated: dict[str, float]
) -> None:
    for name in COUNTED:
        assert stated[name] == pytest.approx(measured[name], rel=0.02), name


def test_times_are_of_the_measured_size(
    measured: dict[str, float], stated: dict[str, float]
) -> None:
    timed = [
        *SECONDS,
        *(name for name in measured if name.startswith(("decode_", "encode_", "pass_"))),
    ]
    assert len(timed) == 6
    for name in timed:
        assert stated[name] / WITHIN < measured[name] < stated[name] * WITHIN, name


def test_replicas_follow_from_what_was_measured(measured: dict[str, float]) -> None:
    """One picture of a window, at a rate that a measured processor can just do: one and the spare."""
    cost = measured["network_s_per_megapixel"]
    window = 384 * 512 / 1e6
    load = Load(images_per_s=1, megapixels=window, utilisation=1, s_per_megapixel=cost)
    seconds = (
        size(load)["sampler"].needs["computing"] * 8 * 0.8
    )  # processors of a sampler, their efficiency
    assert size(load).windows == 1
    assert seconds == pytest.approx(cost * window, rel=0.3)
