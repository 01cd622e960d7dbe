"""Health that follows a trial, on a real server."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from services.common.health import watched
from services.common.server import ALIVE, Server
from services.common.settings import ServerSettings
from tests.integration.calls import NOT_SERVING, SERVING, becomes, health
from vlmir.errors import UnavailableError
from vlmir.image import Limits

SERVICE = "vlmir.v1.CaptionerService"


class Trial:
    """Fails as told."""

    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault

    async def __call__(self) -> None:
        if self.fault is not None:
            raise self.fault


@pytest.mark.parametrize("fault", [UnavailableError("nothing is loaded"), ValueError("a bug")])
def test_health_follows_the_trial(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    trial = Trial(fault)

    async def test() -> None:
        settings = ServerSettings(port=0, grace_s=0)
        server = Server([SERVICE], lambda _: None, settings=settings, limits=Limits())
        async with (
            watched(server, trial, every_s=0.02) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            assert await health(channel, SERVICE) == NOT_SERVING
            # The server as a whole, for which probes ask by default.
            assert await health(channel, "") == NOT_SERVING
            assert await health(channel, ALIVE) == SERVING  # no reason to restart it
            trial.fault = None
            await becomes(channel, SERVICE, SERVING)
            assert await health(channel, "") == SERVING
            trial.fault = fault
            await becomes(channel, SERVICE, NOT_SERVING)
            await asyncio.sleep(0.1)
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health(channel, SERVICE)

    asyncio.run(test())
    told = [record.getMessage() for record in caplog.records if record.name == "vlmir.health"]
    # Each change once, however often it is tried.
    reason = f"cannot answer requests: {fault}"
    assert told == [reason, "reporting SERVING", reason, "reporting NOT_SERVING"]
