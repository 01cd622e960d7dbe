"""A replica of the restorer without Ray around it: how it starts, and what it says of its health."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest
from grpc_health.v1 import health_pb2

from services.restorer.cluster import Choice, Cluster
from services.restorer.settings import ClusterSettings
from tests.integration.calls import NOT_SERVING, free_port

pytest.importorskip("ray.serve")


class Broken(Cluster):
    """Fails in a way that nobody has thought of."""

    def choose(self, *, fresh: bool = False) -> Choice:
        raise KeyError("/a/secret/path")


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One whose store does not answer."""
    from services.restorer import app

    monkeypatch.setenv("VLMIR_STORE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("VLMIR_STORE_ACCESS_KEY", "someone")
    monkeypatch.setenv("VLMIR_STORE_SECRET_KEY", "something")
    monkeypatch.setattr(app, "configure_logging", lambda *_: None)  # the tests' own stays
    monkeypatch.setattr(app, "Cluster", Broken)
    yield app.RestorerReplica(ClusterSettings.model_validate({}))


def test_without_its_store_it_starts(replica: Any) -> None:
    assert replica is not None


def test_health_tells_nothing_but_the_state(replica: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        request = health_pb2.HealthCheckRequest()
        assert (await replica.Check(request, cast(Any, None))).status == NOT_SERVING
        async for health in replica.Watch(request, cast(Any, None)):
            assert health.status == NOT_SERVING
            break

    asyncio.run(test())
    assert "/a/secret/path" in caplog.text  # in the log alone
