"""The schemas take the manifests as they are, and none of the ways in which they could be misspelt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from deploy.manifests.render import ENVIRONMENTS, Manifest
from deploy.manifests.validate import validate
from tests.unit.deploy.manifests import CRD, container, find, needs_kubectl, rendered

pytestmark = needs_kubectl

Break = Callable[[list[Manifest]], Any]

has_crd = pytest.mark.skipif(not CRD.exists(), reason="KubeRay's definition is not here")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_all_objects_are_of_the_form_of_their_kind(environment: str) -> None:
    assert validate(rendered(environment), ray_crd=CRD if CRD.exists() else None) == []


def test_a_newer_kubernetes_takes_them_too() -> None:
    assert validate(rendered("gpu"), kubernetes="1.37") == []


def _cluster(objects: list[Manifest]) -> Any:
    return find(objects, "RayService", "vlmir-restorer")["spec"]["rayClusterConfig"]


def _ray_pod(objects: list[Manifest]) -> Any:
    return _cluster(objects)["headGroupSpec"]["template"]["spec"]


def _spec(objects: list[Manifest], kind: str) -> Any:
    return find(objects, kind, "vlmir")["spec"]


BROKEN: dict[str, tuple[Break, str, str]] = {
    "misspelt field of a container": (
        lambda all: container(all, "vlmir-sampler").update(readynessProbe={}),
        "Deployment vlmir-sampler",
        "readynessProbe",
    ),
    "misspelt field of a pod": (
        lambda all: find(all, "StatefulSet", "vlmir-minio")["spec"]["template"]["spec"].update(
            serviceAcountName="x"
        ),
        "StatefulSet vlmir-minio",
        "serviceAcountName",
    ),
    "number as text": (
        lambda all: container(all, "vlmir-sampler")["ports"][0].update(containerPort="50063"),
        "Deployment vlmir-sampler",
        "is not of type",
    ),
    "unquoted variable": (
        lambda all: find(all, "ConfigMap", "vlmir-gateway")["data"].update(VLMIR_PORT=50050),
        "ConfigMap vlmir-gateway",
        "50050 is not of type",
    ),
    "rule of a network policy": (
        lambda all: find(all, "NetworkPolicy", "vlmir-sampler")["spec"]["ingress"][0].update(
            form=[]
        ),
        "NetworkPolicy vlmir-sampler",
        "form",
    ),
    "unknown kind": (
        lambda all: all.append(
            {"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": "w"}}
        ),
        "Widget w",
        "has no schema here",
    ),
    "old version of a kind": (
        lambda all: find(all, "CronJob", "vlmir-batch").update(apiVersion="batch/v1beta1"),
        "CronJob vlmir-batch",
        "has no schema here",
    ),
    "object that is there twice": (
        lambda all: all.append(find(all, "Service", "vlmir-sampler")),
        "Service vlmir-sampler",
        "is there twice",
    ),
    "misspelt field of a certificate": (
        lambda all: _spec(all, "Certificate").update(dnsName=["x"]),
        "Certificate vlmir-ca",
        "dnsName",
    ),
    "certificate for no purpose": (
        lambda all: find(all, "Certificate", "vlmir-sampler")["spec"].update(usages=["server"]),
        "Certificate vlmir-sampler",
        "'server' is not one of",
    ),
    "duration in days": (
        lambda all: _spec(all, "Certificate").update(duration="90d"),
        "Certificate vlmir-ca",
        "'90d' does not match",
    ),
    "route by a misspelt match": (
        lambda all: _spec(all, "GRPCRoute")["rules"][0]["matches"][0].update(methods={}),
        "GRPCRoute vlmir",
        "methods",
    ),
    "route to nowhere": (
        lambda all: _spec(all, "HTTPRoute")["rules"][0]["backendRefs"][0].pop("port"),
        "HTTPRoute vlmir-store",
        "'port' is a required",
    ),
    "listener of a misspelt protocol": (
        lambda all: _spec(all, "Gateway")["listeners"][0].update(protocol="GRPCS"),
        "Gateway vlmir",
        "'GRPCS' is not one of",
    ),
    "host with a scheme": (
        lambda all: _spec(all, "BackendTLSPolicy")["validation"].update(hostname="https://x"),
        "BackendTLSPolicy vlmir-gateway",
        "does not match",
    ),
    "monitor of ports": (
        lambda all: _spec(all, "PodMonitor").update(endpoints=[]),
        "PodMonitor vlmir-",
        "endpoints",
    ),
    "misspelt field of a Ray service": (
        lambda all: _spec(all, "RayService").update(serveConfig="x"),
        "RayService vlmir-restorer",
        "serveConfig",
    ),
    "misspelt field of a Ray cluster": (
        lambda all: _cluster(all).update(headGroupSpecs={}),
        "RayService vlmir-restorer",
        "headGroupSpecs",
    ),
    "number in Ray's parameters": (
        lambda all: _cluster(all)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "RayService vlmir-restorer",
        "0 is not of type 'string'",
    ),
    "misspelt field of Ray's pods": (
        lambda all: _ray_pod(all)["containers"][0].update(commands=[]),
        "RayService vlmir-restorer head",
        "commands",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_it_is_found(what: str) -> None:
    objects = rendered("cpu")
    mutate, where, said = BROKEN[what]
    mutate(objects)
    found = validate(objects)
    assert found, what
    assert all(finding.rule == "schema" for finding in found)
    assert any(where in finding.where and said in finding.what for finding in found), found


@has_crd
@pytest.mark.parametrize(
    ("mutate", "said"),
    [
        (lambda all: _cluster(all).update(rayVersions="2"), "rayVersions"),
        (lambda all: _cluster(all)["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
        (lambda all: _ray_pod(all)["containers"][0].pop("name"), "'name' is a required"),
        (lambda all: _ray_pod(all).update(tolerationss=[]), "tolerationss"),
        (lambda all: _cluster(all)["headGroupSpec"].pop("template"), "'template' is a required"),
    ],
)
def test_kuberays_own_schema_finds_it(mutate: Break, said: str) -> None:
    definition = yaml.load(CRD.read_text("utf-8"), yaml.CSafeLoader)
    from deploy.manifests.validate import _kuberay

    objects = rendered("cpu")
    assert list(_kuberay(objects, definition)) == []
    mutate(objects)
    assert any(said in finding.what for finding in _kuberay(objects, definition))


@has_crd
def test_a_training_is_held_to_the_schema_of_a_ray_cluster() -> None:
    objects = rendered("training")
    spec = find(objects, "RayJob", "vlmir-training")["spec"]
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 4
    assert any("maxReplica" in finding.what for finding in validate(objects, ray_crd=CRD))
    del spec["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"]
    spec["entryPoint"] = "x"
    assert any("entryPoint" in finding.what for finding in validate(objects, ray_crd=CRD))
