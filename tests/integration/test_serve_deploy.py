"""The RayService's Serve config, given to a running Ray by `serve deploy`: by the way that KubeRay takes, too."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.restorer.settings import ClusterSettings
from tests.integration.calls import SERVING, free_port, wait_until
from tests.integration.cluster import Cluster, starting_cluster
from tests.integration.serving import PATIENCE_S, SERVICE, running_ray
from tests.integration.test_serve_app import request
from tests.unit.deploy.manifests import find, needs_kubectl, rendered
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

pytestmark = [needs_kubectl, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def services(small_bundle_folder: Path) -> Iterator[Cluster]:
    with starting_cluster(small_bundle_folder) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ray_address(services: Cluster) -> Iterator[str]:
    """Of the dashboard's HTTP interface; the services' addresses are in Ray's environment, as in the pods."""
    port = free_port()
    addresses = {f"VLMIR_{name.upper()}": value for name, value in services.settings.items()}
    assert {name.removeprefix("VLMIR_").lower() for name in addresses} <= set(
        ClusterSettings.model_fields
    )
    patient = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}  # else a busy machine's is given up
    with running_ray({**addresses, **patient}, dashboard=port):
        services.wait()
        yield f"http://127.0.0.1:{port}"


def config(folder: Path) -> tuple[Path, int]:
    """The RayService's own, with free ports; and the port of gRPC."""
    spec = find(rendered("cpu"), "RayService", "vlmir-restorer")["spec"]
    wanted: dict[str, Any] = yaml.safe_load(spec["serveConfigV2"])
    wanted["http_options"]["port"], wanted["grpc_options"]["port"] = free_port(), free_port()
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(wanted))
    return file, wanted["grpc_options"]["port"]


def serve(*words: str | Path, address: str) -> subprocess.CompletedProcess[str]:
    """Ray's command."""
    program = "from ray.serve.scripts import cli; cli()"
    command = [sys.executable, "-c", program, *map(str, words), "--address", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def applications(address: str) -> dict[str, Any]:
    """What runs, as KubeRay asks for it."""
    with urllib.request.urlopen(f"{address}/api/serve/applications/", timeout=PATIENCE_S) as page:
        told: dict[str, Any] = json.loads(page.read())["applications"]
    return told


def test_a_config_that_ray_does_not_take_is_refused(ray_address: str, tmp_path: Path) -> None:
    file, _ = config(tmp_path)
    file.write_text(file.read_text().replace("import_path:", "import_pth:"))
    done = serve("deploy", file, address=ray_address)
    assert done.returncode != 0 and "import_path" in done.stdout + done.stderr


def test_a_picture_is_restored_by_what_was_deployed(ray_address: str, tmp_path: Path) -> None:
    file, port = config(tmp_path)
    done = serve("deploy", file, address=ray_address)
    assert done.returncode == 0, done.stderr

    def runs() -> bool:
        return bool(applications(ray_address)["vlmir"]["status"] == "RUNNING")

    wait_until(runs, within_s=3 * PATIENCE_S, told=lambda: applications(ray_address))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        asked = health_pb2.HealthCheckRequest(service=SERVICE)
        health = health_pb2_grpc.HealthStub(channel)
        wait_until(lambda: health.Check(asked, timeout=PATIENCE_S).status == SERVING)
        answer = RestorerServiceStub(channel).Restore(request(), timeout=PATIENCE_S)
    assert answer.result.report.release
    deployed = applications(ray_address)["vlmir"]["deployed_app_config"]
    assert (
        deployed["deployments"]
        == yaml.safe_load(file.read_text())["applications"][0]["deployments"]
    )
