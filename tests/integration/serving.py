"""The restorer on a real Ray Serve, for tests of the whole cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.calls import ROOT, SERVING, free_port, wait_until
from tests.integration.cluster import Cluster
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

CONFIG = ROOT / "deploy" / "serve.yaml"
SERVICE = "vlmir.v1.RestorerService"
PATIENCE_S = 60.0


@dataclass
class Application:
    """The application, running."""

    address: str
    cluster: Cluster
    stub: RestorerServiceStub
    channel: grpc.Channel
    config: dict[str, Any]
    """Of Ray Serve."""

    def kill_replica(self) -> None:
        """End the replica as a crash would."""
        for name, namespace in replicas():
            ray.kill(ray.get_actor(name, namespace=namespace))

    def redeploy(self, **args: Any) -> None:
        """Do what ``serve deploy`` does with other settings, and return at once."""
        self.config["applications"][0]["args"] = {**self.cluster.settings, **args}
        self._deploy()

    def rescale(self, **autoscaling: float) -> None:
        """Likewise with other numbers for how replicas come and go."""
        (deployment,) = self.config["applications"][0]["deployments"]
        deployment["autoscaling_config"] |= autoscaling
        self._deploy()

    def _deploy(self) -> None:
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        schema = ServeDeploySchema.model_validate(self.config)
        _get_global_client().deploy_apps(schema, _blocking=False)

    def health(self) -> int:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        return health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=PATIENCE_S).status

    def wait_for_health(self, wanted: int) -> None:
        wait_until(lambda: self.health() == wanted, within_s=PATIENCE_S)


def replicas() -> set[tuple[str, str]]:
    """Name and namespace of each replica that there is."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return {
        (actor["name"], actor["namespace"])
        for actor in actors
        if actor["name"].startswith("SERVE_REPLICA::vlmir#restorer")
    }


@contextmanager
def running_ray(settings: Mapping[str, str], dashboard: int | None = None) -> Iterator[None]:
    """A Ray of our own, with more settings in its environment; ``dashboard``: port of its dashboard, if it has one."""
    ours = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_prestart_worker_first_driver": "0",
        "OMP_NUM_THREADS": "1",
    }
    before = dict(os.environ)
    os.environ.update({**ours, **settings})
    # Sockets lie in this folder, and their paths must be short.
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=dashboard is not None,
            dashboard_port=dashboard,
            object_store_memory=128 << 20,
            _temp_dir=folder,
            logging_level="WARNING",
            log_to_driver=False,
        )
        try:
            yield
        finally:
            serve.shutdown()
            ray.shutdown()
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def serving(services: Cluster, **args: Any) -> Iterator[Application]:
    """What ``serve run deploy/serve.yaml`` starts, at free ports.

    Args:
        services: What it calls; waited for after it has started.
        args: Its settings; they win over the addresses of the services.
    """
    from ray.serve._private.api import serve_start
    from ray.serve.config import gRPCOptions
    from ray.serve.schema import ServeDeploySchema

    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text("utf-8"))
    config["http_options"]["port"], config["grpc_options"]["port"] = free_port(), free_port()
    config["applications"][0]["args"] = {**services.settings, **args}
    schema = ServeDeploySchema.model_validate(config)
    client = serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
    )
    client.deploy_apps(schema, _blocking=True)
    services.wait()
    address = f"127.0.0.1:{schema.grpc_options.port}"
    with grpc.insecure_channel(address) as channel:
        stub = RestorerServiceStub(channel)
        application = Application(address, services, stub, channel, config)
        application.wait_for_health(SERVING)
        yield application
