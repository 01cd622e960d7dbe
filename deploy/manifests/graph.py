"""Who calls whom, by the manifests alone: by the addresses that pods are given, and by the network policies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.manifests.render import Manifest
from deploy.manifests.workloads import Workload, by_kind, named, selects, workloads

__all__ = ["OUTSIDE", "Call", "addresses", "edges", "open_ways"]

OUTSIDE: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "prometheus": (
        {"kubernetes.io/metadata.name": "monitoring"},
        {"app.kubernetes.io/name": "prometheus"},
    ),
}
"""Callers of the architecture that other manifests make: labels of their namespace, and of their pods."""

_ADDRESS = re.compile(r"(?:(?<=[/@=])|^)(vlmir-[a-z0-9.{}-]+):(\d+)")


@dataclass(frozen=True, order=True)
class Call:
    """One way from a part to another."""

    client: str
    server: str
    port: int


def edges(calls: Iterable[Call]) -> set[tuple[str, str]]:
    """(client, server) of some calls."""
    return {(call.client, call.server) for call in calls}


def addresses(objects: Sequence[Manifest]) -> set[Call]:
    """Calls by the addresses in variables and commands; a part's calls of its own pods are left out."""
    services, pods = named(objects, "Service"), list(workloads(objects))
    found = set[Call]()
    for pod in pods:
        for host, port in _addresses_of(pod, objects):
            selector = services.get(host.split(".")[0], {}).get("spec", {}).get("selector", {})
            servers = {
                other.component
                for other in pods
                if selector
                and other.serves
                and selects({"matchLabels": _own(selector)}, other.labels)
            }
            found |= {Call(pod.component, server, port) for server in servers - {pod.component}}
    return found


def _own(selector: Mapping[str, str]) -> dict[str, str]:
    """A selector without the labels that KubeRay sets on pods that run."""
    return {key: value for key, value in selector.items() if not key.startswith("ray.io/")}


def _addresses_of(pod: Workload, objects: Sequence[Manifest]) -> Iterator[tuple[str, int]]:
    maps = {name: one.get("data", {}) for name, one in named(objects, "ConfigMap").items()}
    for container in pod.containers:
        texts: list[Any] = [
            *pod.variables(container, maps).values(),
            *container.get("command", ()),
            *container.get("args", ()),
        ]
        for text in filter(None, texts):
            for host, port in _ADDRESS.findall(text):
                yield re.sub(r"^vlmir-minio-\{.*\}\.", "", host), int(port)


def open_ways(objects: Sequence[Manifest]) -> set[Call]:
    """Calls that the network policies let through, at ports that the called pods have; none within a part."""
    policies, pods = by_kind(objects, "NetworkPolicy"), list(workloads(objects))
    found = set[Call]()
    for server in (pod for pod in pods if pod.serves):
        for port in server.ports().values():
            for client in pods:
                if (
                    client.component != server.component
                    and _lets(policies, "Egress", client.labels, server.labels, port)
                    and _lets(policies, "Ingress", server.labels, client.labels, port)
                ):
                    found.add(Call(client.component, server.component, port))
            for name, (namespace, labels) in OUTSIDE.items():
                if _lets(policies, "Ingress", server.labels, labels, port, namespace):
                    found.add(Call(name, server.component, port))
    return found


def _lets(
    policies: Iterable[Manifest],
    direction: str,
    pod: Mapping[str, str],
    other: Mapping[str, str],
    port: int,
    namespace: Mapping[str, str] | None = None,
) -> bool:
    """Whether a pod may be called by, or call, another; ``namespace``: labels of the other's, if not the same."""
    mine = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod)
    ]
    if not mine:
        return True
    side, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return any(
        _has_port(rule, port) and _has_peer(rule.get(peers), other, namespace)
        for spec in mine
        for rule in spec.get(side, ())
    )


def _has_port(rule: Mapping[str, Any], port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        one.get("port") == port and one.get("protocol", "TCP") == "TCP" for one in ports
    )


def _has_peer(
    peers: Sequence[Mapping[str, Any]] | None,
    labels: Mapping[str, str],
    namespace: Mapping[str, str] | None,
) -> bool:
    if not peers:
        return True
    return any(
        _in_namespace(peer.get("namespaceSelector"), namespace)
        and selects(peer.get("podSelector", {}), labels)
        for peer in peers
        if "ipBlock" not in peer
    )


def _in_namespace(selector: Mapping[str, Any] | None, namespace: Mapping[str, str] | None) -> bool:
    if selector is None:
        return namespace is None
    return selects(
        selector, namespace if namespace is not None else {"kubernetes.io/metadata.name": "vlmir"}
    )
