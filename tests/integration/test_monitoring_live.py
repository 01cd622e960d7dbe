"""A real Prometheus reads the services and a real Ray by the shipped config; the dashboard's queries return data."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.calls import ROOT, free_port, metrics, process, wait_until
from tests.integration.cluster import Cluster, starting_cluster
from tests.integration.serving import Application, ray, running_ray, serving
from tests.integration.test_serve_app import request
from tests.integration.triton import SERVER, RealTriton, running_triton, write_embedder
from vlmir.client import RestorationClient
from vlmir.options import RestoreOptions

MONITORING = ROOT / "deploy" / "monitoring"
PICTURES = 3
EMPTY = ("vlmir_gpu_", "nv_gpu_", "ALERTS", "increase(vlmir_promotions_total[1m])")
"""What has no data here: no graphics processor, no alert, no promotion."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def triton(
    small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealTriton | None]:
    """A real one, where there is one."""
    if SERVER is None:
        yield None
        return
    models = tmp_path_factory.mktemp("models")
    write_embedder(models, small_bundle_folder)
    with running_triton(models, tmp_path_factory.mktemp("triton")) as found:
        yield found


@pytest.fixture(scope="module")
def services(small_bundle_folder: Path, triton: RealTriton | None) -> Iterator[Cluster]:
    embedder = () if triton is None else ("--backend", "triton", "--triton", triton.address)
    with starting_cluster(small_bundle_folder, embedder=embedder) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def app(services: Cluster) -> Iterator[Application]:
    quick = {"RAY_enable_metrics_collection": "1", "RAY_metrics_report_interval_ms": "1000"}
    with running_ray(quick), serving(services) as application:
        yield application


@pytest.fixture(scope="module")
def ray_port(app: Application) -> int:
    """Where Ray's node is read, after some pictures."""
    for _ in range(PICTURES):
        app.stub.Restore(request(), timeout=60)
    port = int(ray.nodes()[0]["MetricsExportPort"])

    def counted() -> bool:
        found = metrics(port).items()
        return any(v == PICTURES for name, v in found if "vlmir_restorations_total" in name)

    wait_until(counted, within_s=60)
    return port


def named(found: dict[str, float], name: str, **labels: str) -> float:
    """The value of the one series with these labels, whatever others it has."""
    (value,) = (
        value
        for series, value in found.items()
        if series.startswith(f"{name}{{") and all(f'{k}="{v}"' in series for k, v in labels.items())
    )
    return value


def test_a_replica_counts_by_rays_port(ray_port: int) -> None:
    found = metrics(ray_port)
    restore = {"service": "vlmir.v1.RestorerService", "method": "Restore"}
    assert named(found, "ray_vlmir_requests_total", code="OK", **restore) == PICTURES
    assert named(found, "ray_vlmir_request_seconds_count", **restore) == PICTURES
    assert named(found, "ray_vlmir_request_seconds_bucket", le="600.0", **restore) == PICTURES
    assert named(found, "ray_vlmir_requests_in_flight", **restore) == 0
    assert named(found, "ray_vlmir_request_bytes_count", **restore) == PICTURES
    assert named(found, "ray_vlmir_restorations_total", degraded="false") == PICTURES
    for stage in ("decode", "caption", "embed", "sample"):
        assert named(found, "ray_vlmir_stage_seconds_count", stage=stage) == PICTURES
    assert named(found, "ray_vlmir_restorations_total", application="vlmir", deployment="restorer")


def config(targets: dict[str, int], rules: Path) -> dict[str, Any]:
    """The shipped config with addresses of this machine, and faster."""
    shipped: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    shipped["rule_files"] = [str(rules)]
    jobs = [job for job in shipped["scrape_configs"] if job["job_name"] in targets]
    assert {job["job_name"] for job in shipped["scrape_configs"]} - targets.keys() <= {
        "minio",
        "triton",
    }
    for job in jobs:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    shipped["scrape_configs"] = jobs
    return shipped


@contextmanager
def prometheus(folder: Path, targets: dict[str, int]) -> Iterator[str]:
    """A server that reads the targets, and its address."""
    address = f"127.0.0.1:{targets['prometheus']}"
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump(config(targets, MONITORING / "rules" / "vlmir.yml")), "utf-8"
    )
    command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield address
        finally:
            started.kill()
            started.wait(20)


def asked(address: str, query: str) -> list[Any]:
    """The series of an instant query; what is no number is none."""
    told = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"http://{address}/api/v1/query?{told}", timeout=10) as page:
        found: list[Any] = json.loads(page.read())["data"]["result"]
    return [series for series in found if series["value"][1] != "NaN"]


def queries() -> dict[str, str]:
    """Of the dashboard: as written, and as Grafana would send it."""
    board = json.loads((MONITORING / "grafana" / "dashboards" / "vlmir.json").read_text("utf-8"))
    written = [t["expr"] for panel in board["panels"] for t in panel.get("targets", ())]
    written += [one["expr"] for one in board["annotations"]["list"]]
    replaced = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".*"}
    sent = dict(zip(written, written, strict=True))
    for variable, value in replaced.items():
        sent = {query: text.replace(variable, value) for query, text in sent.items()}
    return sent


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not on the PATH")
def test_the_dashboards_queries_return_data(
    app: Application, ray_port: int, triton: RealTriton | None, tmp_path: Path
) -> None:
    gateway_metrics = free_port()
    targets = {
        "prometheus": free_port(),
        "gateway": gateway_metrics,
        "restorer": ray_port,
        **{
            name: getattr(app.cluster, name).metrics_port
            for name in ("captioner", "embedder", "sampler")
        },
    }
    targets |= {} if triton is None else {"triton": triton.metrics_port}
    excused = EMPTY if triton is not None else (*EMPTY, "nv_")
    flags = ("--upstream", app.address, "--metrics-port", str(gateway_metrics))
    with (
        process("services.gateway", *flags) as (_, gateway),
        prometheus(tmp_path, targets) as address,
        RestorationClient(gateway) as client,
    ):

        def ready() -> bool:
            try:
                return len(asked(address, "up == 1")) == len(targets)
            except OSError:
                return False

        wait_until(ready, within_s=60, told=(tmp_path / "log").read_text)
        seeds = iter(range(10_000, 20_000))

        def empty() -> list[str]:
            """Queries that have nothing yet; each look comes after one more picture, so that rates are not 0 / 0."""
            options = RestoreOptions(seed=next(seeds), degradation="noisy", steps=2)
            client.restore(request().image.data, options)
            return [query for query, text in queries().items() if not asked(address, text)]

        def expected(query: str) -> bool:
            return any(word in query for word in excused)

        wait_until(
            lambda: all(expected(query) for query in empty()),
            within_s=60,
            told=lambda: [query for query in empty() if not expected(query)],
        )
        assert asked(address, 'vlmir_requests_total{job="restorer",code="OK"}')
        assert not asked(address, "sum(rate(vlmir_request_total[1m]))")  # a name that nobody has
        assert not asked(address, '{__name__=~"ray_vlmir_.+"}')
        firing = asked(address, 'ALERTS{alertstate="firing"}')
        assert not firing
