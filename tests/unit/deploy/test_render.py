"""Every overlay and every component renders, in seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deploy.contract import PORTS
from deploy.manifests.__main__ import checked, main
from deploy.manifests.policy import check
from deploy.manifests.render import ENVIRONMENTS, KUSTOMIZATIONS, parse, render
from deploy.manifests.validate import validate
from tests.unit.deploy.manifests import container, find, needs_kubectl, rendered, variant
from vlmir import __version__
from vlmir.errors import OptionError, UnavailableError

pytestmark = needs_kubectl


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_overlay_renders_in_seconds(
    environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.perf_counter()
    assert main(["render", environment]) == 0
    assert time.perf_counter() - began < 10
    assert parse(capsys.readouterr().out) == rendered(environment)


def test_there_is_an_overlay_for_each_environment() -> None:
    assert {path.name for path in (KUSTOMIZATIONS / "overlays").iterdir()} == set(ENVIRONMENTS)


def test_an_unknown_environment_is_told() -> None:
    with pytest.raises(OptionError, match="ENV=prod is unknown; choose cpu, gpu"):
        render("prod")


def test_a_missing_kubectl_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="kubectl is not on the PATH"):
        render("dev")


def test_what_differs_between_the_environments() -> None:
    cpu, gpu, dev = (rendered(name) for name in ("cpu", "gpu", "dev"))
    cards = {
        name
        for name in ("captioner", "embedder", "sampler", "gateway", "triton")
        if "nvidia.com/gpu" in container(gpu, f"vlmir-{name}")["resources"]["limits"]
    }
    # What computes where is said in OPERATIONS.md: services.captioner has no setting for a device.
    assert cards == {"sampler", "triton"}
    assert "nvidia.com/gpu" not in str(cpu + dev)
    assert container(gpu, "vlmir-sampler")["image"].endswith(f":{__version__}-cuda")
    assert container(cpu, "vlmir-sampler")["image"].endswith(f":{__version__}")
    metric = find(gpu, "HorizontalPodAutoscaler", "vlmir-sampler")["spec"]["metrics"][0]
    assert metric["pods"]["metric"]["name"] == "vlmir_queue_depth"
    metric = find(gpu, "HorizontalPodAutoscaler", "vlmir-captioner")["spec"]["metrics"][0]
    assert metric["resource"]["name"] == "cpu"
    metric = find(cpu, "HorizontalPodAutoscaler", "vlmir-sampler")["spec"]["metrics"][0]
    assert metric["resource"]["name"] == "cpu"
    kinds = {one["kind"] for one in dev}
    assert not kinds & {"Certificate", "HorizontalPodAutoscaler", "Gateway", "PodMonitor"}


def test_a_changed_setting_rolls_the_pods(tmp_path: Path) -> None:
    plain, traced = variant(tmp_path / "a"), variant(tmp_path / "b", "tracing")
    for objects in (plain, traced):
        name = find(objects, "ConfigMap", "vlmir-sampler")["metadata"]["name"]
        assert container(objects, "vlmir-sampler")["envFrom"][0]["configMapRef"]["name"] == name
        name = find(objects, "ConfigMap", "vlmir-restorer")["metadata"]["name"]
        ray = find(objects, "RayService", "vlmir-restorer")["spec"]["rayClusterConfig"]
        head = ray["headGroupSpec"]["template"]["spec"]["containers"][0]
        worker = ray["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
        assert {one["envFrom"][0]["configMapRef"]["name"] for one in (head, worker)} == {name}
    names = [
        {one["metadata"]["name"] for one in objects if one["kind"] == "ConfigMap"}
        for objects in (plain, traced)
    ]
    assert len(names[0] - names[1]) == 5  # the services that are traced


@pytest.mark.parametrize(
    "components",
    [
        (),
        ("minio-distributed",),
        ("tls",),
        ("tls", "batch"),
        ("gpu", "autoscaling", "autoscaling-queue"),
        ("monitoring", "tracing"),
    ],
)
def test_components_are_free_of_faults(tmp_path: Path, components: tuple[str, ...]) -> None:
    objects = variant(tmp_path, *components)
    for one in objects:  # what an overlay adds
        one["metadata"].setdefault("namespace", "vlmir")
    assert check(objects) == []


def test_tracing_lets_spans_out(tmp_path: Path) -> None:
    objects = variant(tmp_path, "tracing")
    assert validate(objects) == []
    data = find(objects, "ConfigMap", "vlmir-gateway")["data"]
    assert data["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel-collector.observability:4317"
    policy = find(objects, "NetworkPolicy", "vlmir-tracing")["spec"]
    assert policy["egress"][0]["ports"] == [{"port": 4317}]
    assert len(policy["podSelector"]["matchExpressions"][0]["values"]) == 5


def test_all_ports_of_the_head_are_listed() -> None:
    spec = find(rendered("cpu"), "RayService", "vlmir-restorer")["spec"]["rayClusterConfig"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    ports = {port["name"]: port["containerPort"] for port in head}
    assert set(ports.values()) == {*PORTS["ray"].values(), *PORTS["restorer"].values()}
    assert ports["serve-grpc"] == PORTS["restorer"]["grpc"]
    assert spec["authOptions"] == {"mode": "token"}


def test_the_reported_faults_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = rendered("dev")
    container(broken, "vlmir-sampler")["image"] += "x"
    find(broken, "NetworkPolicy", "vlmir-dns")["spec"]["egres"] = []
    monkeypatch.setattr("deploy.manifests.__main__.render", lambda _: broken)
    with pytest.raises(OptionError, match=r"dev have 2 faults:\n.*vlmir-sampler.*\n.*egres"):
        checked("dev")
