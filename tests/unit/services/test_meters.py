"""What is counted of restorations, and of graphics processors; and that the whole page is well formed."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.releases import Releases
from services.common.telemetry.gpu import observe_gpu
from services.common.telemetry.metrics import Metrics
from services.restorer.meters import RestorationMeters
from services.sampler import server
from services.sampler.batcher import Batcher
from services.sampler.budget import Budget
from services.sampler.model import load_model, warm_up
from tests.unit.deploy.exported import OneDevice
from tests.unit.services.asking import scraped
from vlmir.compute import REFERENCE
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer
from vlmir.sampling import CALL_PIXELS

LEVELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
OPTIONS = RestoreOptions(steps=3, degradation="noisy")


def page(metrics: Metrics) -> dict[str, float]:
    endpoint = metrics.serve("127.0.0.1", 0)
    try:
        return scraped(endpoint.address)
    finally:
        endpoint.close()


@pytest.fixture(scope="module")
def restorer(small_bundle_folder: Path) -> Restorer:
    return Restorer.load(small_bundle_folder)


def test_a_restoration_and_its_stages_are_counted_when_it_is_done(restorer: Restorer) -> None:
    metrics = Metrics()
    meters = RestorationMeters(metrics.instruments)
    plain = [progress.step for progress in restorer.stream(LEVELS, OPTIONS)]
    run = meters.counted(restorer.stream(LEVELS, OPTIONS))
    steps = []
    while True:
        try:
            steps.append(next(run).step)
        except StopIteration as end:
            restoration = end.value
            break
    assert steps == plain
    counted = page(metrics)
    assert counted['vlmir_restorations_total{degraded="false"}'] == 1
    spent_ms = restoration.report.milliseconds
    assert set(spent_ms) == {"decode", "caption", "embed", "sample"}
    for stage, value in spent_ms.items():
        assert counted[f'vlmir_stage_seconds_count{{stage="{stage}"}}'] == 1
        total = counted[f'vlmir_stage_seconds_sum{{stage="{stage}"}}']
        assert total == pytest.approx(value / 1e3)


def test_a_restoration_that_is_cancelled_is_not_counted(restorer: Restorer) -> None:
    metrics, ended = Metrics(), list[bool]()

    def stream() -> Iterator[object]:
        try:
            yield from restorer.stream(LEVELS, OPTIONS)
        finally:
            ended.append(True)

    run = RestorationMeters(metrics.instruments).counted(stream())  # type: ignore[arg-type]
    next(run)
    run.close()
    assert ended == [True]
    assert not any(name.startswith("vlmir_restorations_total{") for name in page(metrics))


def test_the_memory_of_each_device_is_shown() -> None:
    metrics = Metrics()
    observe_gpu(metrics, OneDevice())
    found = page(metrics)
    assert found['vlmir_gpu_memory_allocated_bytes{device="0"}'] == 1 << 30
    assert found['vlmir_gpu_memory_reserved_bytes{device="0"}'] == 2 << 30
    assert found['vlmir_gpu_memory_total_bytes{device="0"}'] == 80 << 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_nothing_is_shown_of_any() -> None:
    metrics = Metrics()
    observe_gpu(metrics, torch.cuda)
    assert not any("gpu" in name for name in page(metrics))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
def test_prometheus_finds_nothing_wrong_with_the_names() -> None:
    batcher = Batcher(active=1, waiting=1, pixels=1, room=1)
    budget = Budget.of(torch.device("cpu"), call_pixels=CALL_PIXELS)
    metrics = server._metrics(
        Releases("sampler", partial(load_model, compute=REFERENCE), warm_up), batcher, budget
    )
    RestorationMeters(metrics.instruments)
    observe_gpu(metrics, OneDevice())
    with metrics.call("/vlmir.v1.SamplerService/Sample", 100) as meter:
        meter.code = "OK"

    def complaints() -> str:
        endpoint = metrics.serve("127.0.0.1", 0)
        try:
            with urllib.request.urlopen(f"http://{endpoint.address}/metrics") as reply:
                text = reply.read()
        finally:
            endpoint.close()
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        return (done.stdout + done.stderr).decode()

    try:
        assert complaints() == ""
        metrics.observe("waited_milliseconds", "Of another unit.", lambda: 1)
        assert "waited_milliseconds" in complaints()
    finally:
        batcher.close()
