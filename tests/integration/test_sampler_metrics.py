"""What the sampler shows Prometheus, after real requests side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.common.tensors import to_message
from services.sampler import batcher
from services.sampler.server import SERVICE, running
from services.sampler.settings import SamplerSettings
from tests.integration.calls import NOT_SERVING, SERVING, becomes, free_port, health, metrics
from vlmir.v1 import sampler_pb2
from vlmir.v1.sampler_pb2_grpc import SamplerServiceStub

REQUESTS, STEPS = 6, 5
MEMORY_MIB = 80


def request(height: int = 40, width: int = 56, **options: Any) -> sampler_pb2.SampleRequest:
    pixels = np.random.default_rng(0).random((3, height, width), np.float32)
    return sampler_pb2.SampleRequest(
        pixels=to_message(pixels), options=sampler_pb2.SampleOptions(**options)
    )


async def sampled(stub: Any, **options: Any) -> None:
    *_, last = [reply async for reply in stub.Sample(request(**options), timeout=20)]
    assert last.HasField("result")


def test_requests_side_by_side_share_network_calls_and_that_is_counted(
    small_bundle_folder: Path,
) -> None:
    port = free_port()

    async def whole() -> dict[str, float]:
        settings = SamplerSettings(port=0, bundle=str(small_bundle_folder), metrics_port=port)
        async with (
            running(settings) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub = SamplerServiceStub(channel)
            await asyncio.gather(*(sampled(stub, steps=STEPS) for _ in range(REQUESTS)))
            return await asyncio.to_thread(metrics, port)

    counted = asyncio.run(whole())
    batches = counted['vlmir_batches_total{kind="window"}']
    windows = counted['vlmir_batch_items_total{kind="window"}']
    assert windows == REQUESTS * STEPS
    assert counted["vlmir_batch_mean_windows"] == windows / batches > 1
    assert counted["vlmir_steps_total"] == REQUESTS * STEPS
    assert counted["vlmir_network_pixels_total"] == REQUESTS * STEPS * 40 * 56
    assert 0 < counted["vlmir_network_seconds_total"] < 20
    assert counted["vlmir_queue_depth"] == counted["vlmir_active_pictures"] == 0
    assert counted["vlmir_queue_capacity"] == 16 + 64
    assert counted["vlmir_batch_retries_total"] == counted["vlmir_refused_release"] == 0
    assert counted["vlmir_promotions_total"] == 0
    assert counted['vlmir_release_info{release="small-1"}'] == 1


def test_what_it_takes_follows_the_memory_it_may_take(small_bundle_folder: Path) -> None:
    port = free_port()

    async def whole() -> dict[str, float]:
        settings = SamplerSettings(
            port=0, bundle=str(small_bundle_folder), metrics_port=port, memory_mib=MEMORY_MIB
        )
        async with (
            running(settings) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub = SamplerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await sampled(stub, height=1200, width=1300)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "1300×1200 pixels needs" in (caught.value.details() or "")
            await sampled(stub)
            return await asyncio.to_thread(metrics, port)

    counted = asyncio.run(whole())
    assert counted["vlmir_memory_budget_bytes"] == MEMORY_MIB * 2**20
    assert counted["vlmir_room_pixels"] < MEMORY_MIB * 2**20 / 24


def test_a_sampler_that_samples_no_more_is_not_serving(
    small_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    async def whole() -> None:
        settings = SamplerSettings(port=0, bundle=str(small_bundle_folder))
        async with (
            running(settings) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            assert await health(channel, SERVICE) == SERVING
            monkeypatch.setattr(batcher, "pick", broken)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await sampled(SamplerServiceStub(channel))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await becomes(channel, SERVICE, NOT_SERVING)
            assert await health(channel, "") == NOT_SERVING

    asyncio.run(whole())


def test_a_very_long_option_is_the_callers_fault(small_bundle_folder: Path) -> None:
    async def whole() -> None:
        settings = SamplerSettings(port=0, bundle=str(small_bundle_folder))
        async with (
            running(settings) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            for solver in ("x" * 20_000, "\U0001f600" * 20_000):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await sampled(SamplerServiceStub(channel), solver=solver)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "Unknown solver" in (caught.value.details() or "")

    asyncio.run(whole())
