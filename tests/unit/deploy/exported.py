"""The metrics that the code exports, with their labels, told by the code itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

from services.captioner import server as captioner
from services.common.telemetry.gpu import observe_gpu
from services.common.telemetry.meters import PREFIX, Meters, Record
from services.common.telemetry.metrics import Metrics
from services.embedder import server as embedder
from services.gateway import server as gateway
from services.restorer.meters import RestorationMeters
from services.sampler import server as sampler
from tests.integration.calls import free_port
from tests.integration.calls import metrics as scraped

__all__ = ["FOREIGN", "OneDevice", "exported"]

FOREIGN: Mapping[str, set[str]] = {
    # Seen in a real Triton 2.51; those of graphics processors stand in its documentation.
    "nv_inference_request_failure": {"model", "version", "reason"},
    "nv_inference_count": {"model", "version"},
    "nv_inference_exec_count": {"model", "version"},
    "nv_inference_queue_duration_us": {"model", "version"},
    "nv_inference_compute_infer_duration_us": {"model", "version"},
    "nv_gpu_memory_used_bytes": {"gpu_uuid"},
    # MinIO's documentation.
    "minio_cluster_capacity_usable_free_bytes": {"server"},
    "minio_cluster_capacity_usable_total_bytes": {"server"},
    # tests/integration/test_monitoring_live.py asks a real Prometheus, which reads a real Ray, for them.
    "ray_serve_deployment_queued_queries": {"application", "deployment"},
    "ray_serve_replica_processing_queries": {"application", "deployment", "replica"},
    # Prometheus' own.
    "up": set(),
    "ALERTS": {"alertname", "alertstate", "severity"},
}
"""What others export."""


class OneDevice:
    """As much of ``torch.cuda`` as is asked, with one device of 80 GiB."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def get_device_properties(self, device: int) -> Any:
        return type("Properties", (), {"total_memory": 80 << 30})

    def memory_allocated(self, device: int) -> int:
        return 1 << 30

    def memory_reserved(self, device: int) -> int:
        return 2 << 30


class Noting:
    """Instruments that note how they are declared."""

    def __init__(self, noted: dict[str, set[str]]) -> None:
        self._noted = noted

    def counter(self, name: str, help: str, labels: tuple[str, ...]) -> Record:
        assert name.endswith("_total")
        return self._note(name, labels)

    def level(self, name: str, help: str, labels: tuple[str, ...]) -> Record:
        return self._note(name, labels)

    def histogram(
        self, name: str, help: str, labels: tuple[str, ...], buckets: Sequence[float]
    ) -> Record:
        for suffix, more in (("_bucket", ("le",)), ("_sum", ()), ("_count", ())):
            self._note(name + suffix, (*labels, *more))
        return self._note(name, labels)

    def _note(self, name: str, labels: tuple[str, ...]) -> Record:
        self._noted[PREFIX + name] = set(labels)
        return lambda value, *values: None


def exported() -> dict[str, set[str]]:
    """Name → labels of all that our services export."""
    found: dict[str, set[str]] = {}
    Meters(Noting(found))
    RestorationMeters(Noting(found))

    class Noted(Metrics):
        def observe(self, name: str, help: str, read: Callable[[], float], **labels: str) -> None:
            found[PREFIX + name] = set(labels)

        def observe_info(self, name: str, help: str, read: Callable[[], Mapping[str, str]]) -> None:
            found[f"{PREFIX}{name}_info"] = {name}

    nothing: Any = None
    with (
        patch.object(captioner, "Metrics", Noted),
        patch.object(embedder, "Metrics", Noted),
        patch.object(sampler, "Metrics", Noted),
    ):
        captioner._metrics(nothing, nothing, nothing, nothing)
        embedder._metrics(nothing, nothing, (nothing, nothing))
        sampler._metrics(nothing, type("Batcher", (), {"stats": None})(), nothing)  # type: ignore[arg-type]
    observe_gpu(Noted(), OneDevice())
    return found | _of_a_real_server()


def _of_a_real_server() -> dict[str, set[str]]:
    """What a gateway shows before anybody has called: names without labels."""
    port = free_port()
    settings = gateway.GatewaySettings(port=0, upstream="127.0.0.1:1", metrics_port=port)

    async def page() -> dict[str, float]:
        async with gateway.running(settings):
            return await asyncio.to_thread(scraped, port)

    return {name: set() for name in asyncio.run(page()) if "{" not in name}
