"""What is counted of calls, whatever it is counted with.

A server counts with Prometheus' own client (:mod:`services.common.telemetry.metrics`). A replica in Ray cannot have a
port of its own and counts with Ray's instruments, which leave by Ray's port. Names and labels are the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

__all__ = ["PREFIX", "SECONDS", "CallMeter", "Instruments", "Meters", "Record"]

PREFIX = "vlmir_"
"""Of all our metrics; instruments put it before the names."""

OTHER = "other"
"""Service and method of calls to what is not served, so that callers cannot make up labels."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Buckets for what a request or one of its stages takes."""

_BYTES = tuple(float(4**power) for power in range(5, 15))  # 1 KiB to 256 MiB


class Record(Protocol):
    """Tells an instrument a number."""

    def __call__(self, value: float, *labels: str) -> None:
        """Record ``value`` for the values of the labels, in the order in which these were declared."""


class Instruments(Protocol):
    """Makes instruments; each name once."""

    def counter(self, name: str, help: str, labels: tuple[str, ...]) -> Record:
        """What is recorded, greater than 0, is added; the name ends with ``_total``."""

    def level(self, name: str, help: str, labels: tuple[str, ...]) -> Record:
        """A gauge: what is recorded is added, and may be negative."""

    def histogram(
        self, name: str, help: str, labels: tuple[str, ...], buckets: Sequence[float]
    ) -> Record:
        """Each value recorded falls into a bucket, all of whose bounds are greater than 0."""


@dataclass
class CallMeter:
    """One call being measured."""

    code: str = "UNKNOWN"
    """Name of its status; set it before the call ends."""


class Meters:
    """Counts the calls that a server answers.

    Args:
        instruments: What it counts with.
    """

    def __init__(self, instruments: Instruments) -> None:
        labels = ("service", "method")
        self._requests = instruments.counter("requests_total", "Calls ended.", (*labels, "code"))
        self._seconds = instruments.histogram(
            "request_seconds", "Seconds that calls took.", labels, SECONDS
        )
        self._in_flight = instruments.level("requests_in_flight", "Calls being served.", labels)
        self._bytes = instruments.histogram(
            "request_bytes", "Size of request messages, bytes.", labels, _BYTES
        )

    @contextmanager
    def call(self, method: str, size: int) -> Iterator[CallMeter]:
        """Measure one call of a method that is served.

        Args:
            method: Its full name, ``/service/method``.
            size: Of the request, bytes.
        """
        service, _, name = method.strip("/").partition("/")
        meter, began = CallMeter(), time.perf_counter()
        self._bytes(size, service, name)
        self._in_flight(1, service, name)
        try:
            yield meter
        finally:
            self._in_flight(-1, service, name)
            self._seconds(time.perf_counter() - began, service, name)
            self._requests(1, service, name, meter.code)

    def unknown(self) -> None:
        """Count a call of a method that is not served."""
        self._requests(1, OTHER, OTHER, "UNIMPLEMENTED")
