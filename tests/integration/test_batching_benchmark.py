"""The benchmark of the batcher: each number is what it says, on a network small enough to be measured in no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from services.sampler import batcher, share
from services.sampler.model import load_model
from tests.benchmarks.batching import network
from tests.benchmarks.batching.__main__ import BATCHES, CLIENTS, main
from tests.benchmarks.batching.network import Traffic, measure_intensity
from tests.benchmarks.batching.together import measure_occupancy, measure_throughput
from tests.benchmarks.batching.waiting import measure_waiting
from vlmir.bundle import load_bundle
from vlmir.compute import REFERENCE
from vlmir.sampling import DiffusionSampler

SIDE = 32
BIG = (200, 300)
"""Eight windows of the small preset's tiles."""


@pytest.fixture(scope="module")
def sampler(small_bundle_folder: Path) -> DiffusionSampler:
    return load_model(load_bundle(small_bundle_folder), REFERENCE)


def test_what_an_operation_reads_and_writes_is_counted_and_a_view_is_nothing() -> None:
    layer, x = torch.nn.Linear(8, 4, bias=False), torch.rand(16, 8)
    with torch.inference_mode(), Traffic([layer.weight]) as traffic:
        y = layer(x.reshape(2, 8, 8)[0])
        y.add_(1)
    assert traffic.weights == 4 * 8 * 4
    assert traffic.activations == 4 * (8 * 8 + 8 * 4) + 4 * 2 * 8 * 4


def test_weights_are_read_once_for_all_pictures_of_a_call(sampler: DiffusionSampler) -> None:
    one, four = measure_intensity(sampler, side=SIDE, batches=(1, 4)).values()
    assert four["gflop"] == pytest.approx(4 * one["gflop"])
    assert four["weights_mb"] == one["weights_mb"]
    assert 3.5 < four["activations_mb"] / one["activations_mb"] < 4.5
    moved = 1e6 * (four["weights_mb"] + four["activations_mb"])
    assert four["flop_per_byte"] == pytest.approx(1e9 * four["gflop"] / moved)
    assert four["flop_per_byte"] > one["flop_per_byte"]


def test_both_ways_restore_the_same_pictures(sampler: DiffusionSampler) -> None:
    numbers = measure_throughput(
        sampler, requests=5, side=SIDE, steps=2, pixels=2 * SIDE**2, rounds=1
    )
    assert numbers["difference"] < 1e-4
    assert numbers["ratio"] == pytest.approx(numbers["batched"] / numbers["offline"])
    assert numbers["cpu_ratio"] > 0


def test_occupancy_is_the_share_of_the_room(sampler: DiffusionSampler) -> None:
    found = measure_occupancy(
        sampler, clients=(1, 6), side=SIDE, steps=4, pixels=4 * SIDE**2 + SIDE
    )
    assert found["1 clients"]["occupancy"] == 0.25
    assert found["1 clients"]["room"] == found["6 clients"]["room"] == 4
    assert 0.5 < found["6 clients"]["occupancy"] <= 1


def calls_waited(sampler: DiffusionSampler) -> float:
    numbers = measure_waiting(sampler, side=SIDE, big=BIG, pixels=160 * 160, rounds=2)
    alone, beside = numbers["alone"], numbers["beside"]
    assert isinstance(alone, dict) and isinstance(beside, dict)
    assert alone["pictures"] == 40 and beside["pictures"] >= 2
    assert alone["p95_calls"] == 1
    assert numbers["times_p95"] == beside["p95_ms"] / alone["p95_ms"]
    return beside["p95_calls"]


def test_a_small_picture_waits_for_a_call_of_a_big_one_and_no_more(
    sampler: DiffusionSampler,
) -> None:
    # One call that is under way, one that was begun before the request was seen, and its own.
    assert calls_waited(sampler) <= 3


def test_the_measurement_notices_who_waits_for_the_big_one_to_end(
    sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "pick", lambda jobs, **how: share.pick(jobs[:1], **how))
    assert calls_waited(sampler) > 3


def test_the_command_prints_and_writes_all_numbers(
    small_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "_COPIED", 2**16)
    out = tmp_path / "batching.json"
    what = ["--bundle", str(small_bundle_folder), "--precision", "bf16", "--side", str(SIDE)]
    much = ["--big", *map(str, BIG), "--batch-pixels", "4096", "--rounds", "1"]
    main([*what, *much, "--json", str(out)])
    results = json.loads(out.read_text("utf-8"))
    assert results["about"]["compute"].endswith("bfloat16")
    assert results["machine"]["flop_per_byte"] > 0
    assert [*results["curve, images/s"]] == [f"batch {n}" for n in BATCHES]
    assert [*results["intensity"]] == [f"batch {n}" for n in BATCHES]
    assert [*results["occupancy"]] == [f"{n} clients" for n in CLIENTS]
    assert results["throughput"]["ratio"] > 0 and results["waiting"]["times_p95"] > 0
    assert "waiting: {" in capsys.readouterr().out
