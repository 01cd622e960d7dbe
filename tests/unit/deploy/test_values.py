"""The values that the manifests give are ones that the services take; the guide names what there is."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from deploy.contract import SERVICES, _settings
from deploy.manifests.graph import OUTSIDE
from deploy.manifests.render import KUSTOMIZATIONS, Manifest
from deploy.manifests.secrets import SECRETS
from deploy.manifests.workloads import Workload, named, workloads
from tests.unit.deploy.manifests import SYSTEMS, find, needs_kubectl, rendered

pytestmark = needs_kubectl

GUIDE = (KUSTOMIZATIONS / "README.md").read_text("utf-8")


def read_settings(
    pod: Workload, objects: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    """A service's settings, read as in its container."""
    for name in [name for name in os.environ if name.startswith("VLMIR_")]:
        monkeypatch.delenv(name)
    maps = {name: one.get("data", {}) for name, one in named(objects, "ConfigMap").items()}
    for name, value in pod.variables(pod.spec["containers"][0], maps).items():
        monkeypatch.setenv(name, "a secret" if value is None else value)
    return [settings() for settings in _settings(pod.component)]


@pytest.mark.parametrize("environment", SYSTEMS)
def test_the_services_take_their_settings(
    environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, seen = rendered(environment), set()
    for pod in workloads(objects):
        if read_settings(pod, objects, monkeypatch):
            seen.add(pod.component)
    assert seen == {*SERVICES, "seed", "models"}


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("sampler", "VLMIR_GRACE_S", "2m"),
        ("captioner", "VLMIR_FOLLOW", "models:/vlmir-sampler"),
        ("embedder", "VLMIR_BACKEND", "trition"),
        ("store", "VLMIR_STORE_URL", "http://vlmir-minio:9000/vlmir"),
        ("restorer", "VLMIR_LOG_FORMAT", "logfmt"),
    ],
)
def test_a_wrong_value_is_refused(
    name: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered("dev")
    find(objects, "ConfigMap", f"vlmir-{name}")["data"][variable] = value
    with pytest.raises(ValidationError):
        for pod in workloads(objects):
            read_settings(pod, objects, monkeypatch)


def test_the_guide_tells_how_to_make_each_secret() -> None:
    told = {
        name: tuple(re.findall(r"--from-(?:literal|file)=([\w-]+)=", line))
        for name, line in re.findall(r"create secret generic (\S+)(.*)", GUIDE)
    }
    assert told == SECRETS


def test_the_guide_names_each_component_and_overlay() -> None:
    for kind in ("components", "overlays"):
        for folder in (KUSTOMIZATIONS / kind).iterdir():
            assert f"| `{folder.name}` |" in GUIDE, folder


def test_the_guide_says_which_namespaces_are_let_in() -> None:
    for namespace, _ in OUTSIDE.values():
        for name in namespace.values():
            assert f"`{name}`" in GUIDE


def test_prometheus_reads_the_same_as_without_its_operator() -> None:
    config = yaml.safe_load((KUSTOMIZATIONS.parent / "monitoring" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    monitors = {
        name.removeprefix("vlmir-"): one["spec"]["podMetricsEndpoints"][0]
        for name, one in named(rendered("cpu"), "PodMonitor").items()
    }
    assert set(monitors) == set(jobs) - {"prometheus"}
    for name, endpoint in monitors.items():
        assert endpoint.get("path") == jobs[name].get("metrics_path"), name
        relabelled = [_camel(one) for one in jobs[name].get("metric_relabel_configs", ())]
        assert endpoint.get("metricRelabelings", []) == relabelled, name


def _camel(config: dict[str, Any]) -> dict[str, Any]:
    return {
        re.sub(r"_(\w)", lambda found: found[1].upper(), key): one for key, one in config.items()
    }
