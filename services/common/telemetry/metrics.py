"""What a server counts, in Prometheus' format.

All names begin with ``vlmir_`` and end with their unit. Nothing is computed for a metric before it is read: services
hand over functions that read plain attributes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from services.common.telemetry.meters import PREFIX, Instruments, Meters, Record
from vlmir.errors import UnavailableError

__all__ = ["Endpoint", "Metrics"]

log = logging.getLogger("vlmir.metrics")

T = TypeVar("T")


class Metrics(Meters):
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._observed = _Observed()
        self._registry.register(self._observed)
        ProcessCollector(registry=self._registry)
        self.instruments: Instruments = _PrometheusInstruments(self._registry)
        """For what else is counted."""
        super().__init__(self.instruments)

    def observe(self, name: str, help: str, read: Callable[[], float], **labels: str) -> None:
        """Show a number of the service's own, read when Prometheus asks for it.

        Args:
            name: Without the prefix ``vlmir_``; with its unit at the end. One that ends with ``_total`` is a counter
                and must never decrease, any other is a gauge.
            help: What it is, in a sentence.
            read: Gives the number; called in another thread, so it should only look at attributes. Where it raises, the
                number is left out.
            labels: Tell apart numbers of one name; each takes few values. All numbers of a name have the same labels.
        """
        self._observed.add(name, help, read, labels)

    def observe_info(self, name: str, help: str, read: Callable[[], Mapping[str, str]]) -> None:
        """Show texts, such as the release in use, as the labels of ``vlmir_NAME_info``, whose value is 1.

        Args:
            name: Without prefix and suffix.
            help: What it is, in a sentence.
            read: Gives the labels, always with the same names; see :meth:`observe`.
        """
        self._observed.add_info(name, help, read)

    def serve(self, host: str, port: int) -> Endpoint:
        """Answer Prometheus at ``http://host:port/metrics``, in threads of its own.

        Raises:
            UnavailableError: The port is taken or the host is none of this machine's.
        """
        return Endpoint(self._registry, host, port)


class _PrometheusInstruments:
    """Instruments of one registry; see :class:`Instruments`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, help: str, labels: tuple[str, ...]) -> Record:
        counter = Counter(PREFIX + name, help, labels, registry=self._registry)
        return lambda value, *values: counter.labels(*values).inc(value)

    def level(self, name: str, help: str, labels: tuple[str, ...]) -> Record:
        gauge = Gauge(PREFIX + name, help, labels, registry=self._registry)
        return lambda value, *values: gauge.labels(*values).inc(value)

    def histogram(
        self, name: str, help: str, labels: tuple[str, ...], buckets: Sequence[float]
    ) -> Record:
        histogram = Histogram(PREFIX + name, help, labels, buckets=buckets, registry=self._registry)
        return lambda value, *values: histogram.labels(*values).observe(value)


class Endpoint:
    """The HTTP server that Prometheus reads; see :meth:`Metrics.serve`."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise UnavailableError(
                f"cannot serve metrics on {host}:{port}; choose another --metrics-port, or 0 for a free one"
            ) from error
        self.address = f"{host}:{self._server.server_port}"
        """Where it listens, ``host:port``."""

    def close(self) -> None:
        """Answer what was asked, and stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Observed(Collector):
    """Asks the services' own functions, at every scrape anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, _Family] = {}
        self._infos: dict[str, tuple[str, Callable[[], Mapping[str, str]]]] = {}

    def add(
        self, name: str, help: str, read: Callable[[], float], labels: Mapping[str, str]
    ) -> None:
        with self._lock:
            family = self._numbers.setdefault(name, _Family(help, tuple(labels), {}))
            if family.labels != tuple(labels):
                raise ValueError(f"{name} has the labels {family.labels}, not {tuple(labels)}")
            values = tuple(labels.values())
            if values in family.reads:
                raise ValueError(f"{name} is already observed for {labels}")
            family.reads[values] = read

    def add_info(self, name: str, help: str, read: Callable[[], Mapping[str, str]]) -> None:
        with self._lock:
            if name in self._infos:
                raise ValueError(f"{name} is already observed")
            self._infos[name] = help, read

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            numbers, infos = dict(self._numbers), dict(self._infos)
        for name, family in numbers.items():
            yield family.metric(name)
        for name, (help, read) in infos.items():
            info = InfoMetricFamily(PREFIX + name, help)
            value = _asked(name, read)
            if value is not None:
                info.add_metric((), dict(value))
            yield info


@dataclass(frozen=True)
class _Family:
    """The numbers of one name."""

    help: str
    labels: tuple[str, ...]
    reads: dict[tuple[str, ...], Callable[[], float]]

    def metric(self, name: str) -> Metric:
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        metric = kind(PREFIX + name, self.help, labels=self.labels)
        for values, read in list(self.reads.items()):
            value = _asked(name, read)
            if value is not None:
                metric.add_metric(values, float(value))
        return metric


def _asked(name: str, read: Callable[[], T]) -> T | None:
    """What it reads, or None where it fails: one broken number must not hide the others."""
    try:
        return read()
    except Exception:
        log.exception("the metric %s cannot be read", name)
        return None
