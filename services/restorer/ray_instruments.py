"""Instruments of a replica: what they count leaves by the metrics port of Ray's node, not by one of the replica's own.

Ray puts ``ray_`` before the names; the shipped ``prometheus.yml`` takes it away again. Nothing leaves where Ray's
collection is off (``RAY_enable_metrics_collection=0``). Ray adds the labels ``application``, ``deployment`` and
``replica``, which keep replicas of one node apart.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from services.common.telemetry.meters import PREFIX, Record

__all__ = ["RayInstruments"]


class RayInstruments:
    """To be made within the replica; see :class:`services.common.telemetry.meters.Instruments`."""

    def counter(self, name: str, help: str, labels: tuple[str, ...]) -> Record:
        """A counter."""
        counter = Counter(PREFIX + name, help, _keys(labels))

        def record(value: float, *values: str) -> None:
            counter.inc(value, dict(zip(labels, values, strict=True)))

        return record

    def level(self, name: str, help: str, labels: tuple[str, ...]) -> Record:
        """A gauge. Ray's can only be set, so the sum is kept here."""
        gauge, lock = Gauge(PREFIX + name, help, _keys(labels)), threading.Lock()
        levels = dict[tuple[str, ...], float]()

        def record(value: float, *values: str) -> None:
            with lock:
                levels[values] = levels.get(values, 0) + value
                gauge.set(levels[values], dict(zip(labels, values, strict=True)))

        return record

    def histogram(
        self, name: str, help: str, labels: tuple[str, ...], buckets: Sequence[float]
    ) -> Record:
        """A histogram."""
        histogram = Histogram(PREFIX + name, help, list(buckets), _keys(labels))

        def record(value: float, *values: str) -> None:
            histogram.observe(value, dict(zip(labels, values, strict=True)))

        return record


def _keys(labels: tuple[str, ...]) -> Any:
    """Any number of labels, whatever Ray's annotations say."""
    return labels
