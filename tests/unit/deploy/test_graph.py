"""Who calls whom, derived from the manifests alone, is what the architecture says."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.contract import EDGES, PORTS
from deploy.manifests.graph import Call, addresses, edges, open_ways
from tests.unit.deploy.manifests import SYSTEMS, container, find, needs_kubectl, rendered

pytestmark = needs_kubectl

WATCHED = {edge for edge in EDGES if edge[0] == "prometheus"}
"""Who is watched by Prometheus, which the cluster brings; so does it Grafana, which asks Prometheus."""
CALLS = EDGES - WATCHED - {("grafana", "prometheus")}
BATCH = ("batch", "gateway")
"""A user among others, but within the cluster."""


def everything(environment: str) -> list[Any]:
    """A system, and a training beside it."""
    return rendered(environment) + rendered("training")


def users(environment: str) -> set[tuple[str, str]]:
    return set() if environment == "dev" else {BATCH}


@pytest.mark.parametrize("environment", SYSTEMS)
def test_the_addresses_are_the_architecture(environment: str) -> None:
    assert edges(addresses(everything(environment))) == CALLS | users(environment)


@pytest.mark.parametrize("environment", SYSTEMS)
def test_the_network_lets_through_the_architecture(environment: str) -> None:
    let = edges(open_ways(everything(environment)))
    assert let == CALLS | WATCHED | users(environment)


@pytest.mark.parametrize("environment", SYSTEMS)
def test_each_call_goes_to_a_port_that_its_server_has(environment: str) -> None:
    for call in addresses(everything(environment)):
        assert call.port in PORTS[call.server].values(), call


def test_an_address_that_is_missing_is_missing_in_the_graph() -> None:
    objects = everything("dev")
    del find(objects, "ConfigMap", "vlmir-restorer")["data"]["VLMIR_CAPTIONER"]
    assert CALLS - edges(addresses(objects)) == {("restorer", "captioner")}


def test_an_address_too_many_is_in_the_graph() -> None:
    objects = everything("dev")
    container(objects, "vlmir-gateway")["command"].append("--x=vlmir-postgres:5432")
    assert edges(addresses(objects)) - CALLS == {("gateway", "postgres")}


def test_the_address_of_no_service_is_in_no_graph() -> None:
    objects = everything("dev")
    data = find(objects, "ConfigMap", "vlmir-gateway")["data"]
    data["VLMIR_UPSTREAM"] = "dns:///vlmir-restorers:50051"
    assert CALLS - edges(addresses(objects)) == {("gateway", "restorer")}


@pytest.mark.parametrize(
    ("policy", "side", "lost"),
    [
        ("vlmir-mlflow", "ingress", {("seed", "mlflow"), ("models", "mlflow")}),
        ("vlmir-sampler", "egress", {("sampler", "mlflow"), ("sampler", "minio")}),
        ("vlmir-triton", "ingress", {("models", "triton"), ("prometheus", "triton")}),
    ],
)
def test_a_closed_way_is_closed(policy: str, side: str, lost: set[tuple[str, str]]) -> None:
    objects = everything("dev")
    del find(objects, "NetworkPolicy", policy)["spec"][side]
    assert lost <= EDGES - edges(open_ways(objects))


def test_both_ends_have_to_agree() -> None:
    objects = everything("dev")
    rule = find(objects, "NetworkPolicy", "vlmir-gateway")["spec"]["egress"]
    postgres = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "postgres"}}}
    rule.append({"to": [postgres]})
    call = Call("gateway", "postgres", 5432)
    assert call not in open_ways(objects)
    gateway = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}
    lets = find(objects, "NetworkPolicy", "vlmir-postgres")["spec"]["ingress"]
    lets.append({"from": [gateway], "ports": [{"port": 5433}]})
    assert call not in open_ways(objects)
    lets.append({"from": [gateway], "ports": [{"port": 5432}]})
    assert call in open_ways(objects)


def test_a_pod_without_a_policy_is_open_to_all() -> None:
    objects = [
        one
        for one in everything("dev")
        if one["kind"] != "NetworkPolicy"
        or one["metadata"]["name"] not in ("vlmir-deny-all", "vlmir-postgres")
    ]
    # Its callers are still held back by their own.
    assert ("sampler", "postgres") not in edges(open_ways(objects))
    objects = [one for one in objects if one["kind"] != "NetworkPolicy"]
    assert ("sampler", "postgres") in edges(open_ways(objects))


def test_only_prometheus_of_its_own_namespace_is_let_in() -> None:
    objects = everything("dev")
    rules = find(objects, "NetworkPolicy", "vlmir-sampler")["spec"]["ingress"]
    watching = next(rule for rule in rules if "namespaceSelector" in rule["from"][0])
    watching["from"][0]["namespaceSelector"]["matchLabels"] = {"kubernetes.io/metadata.name": "x"}
    assert ("prometheus", "sampler") not in edges(open_ways(objects))
