"""What the objects are to one another: networks, budgets, autoscalers, names that have to be there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy.contract import EDGES, SERVICES
from deploy.manifests.findings import Finding
from deploy.manifests.graph import OUTSIDE, addresses, open_ways
from deploy.manifests.render import Manifest
from deploy.manifests.secrets import NAMESPACE, SECRETS
from deploy.manifests.workloads import by_kind, named, selects, title, workloads

__all__ = ["budgets", "monitors", "namespace", "network", "references", "scaling"]


_CLUSTER_WIDE = {"Namespace", "ClusterIssuer"}
_RESTRICTED = "pod-security.kubernetes.io/enforce"
# What the deploy itself makes, from a certificate.
_MADE = {"ConfigMap": {"vlmir-ca"}}


def namespace(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """All is in one namespace, which takes only pods that are restricted; no Secret lies in the repository."""
    for one in objects:
        kind, metadata = one["kind"], one["metadata"]
        if kind == "Namespace" and metadata.get("labels", {}).get(_RESTRICTED) != "restricted":
            yield Finding("namespace", title(one), "takes pods that are not restricted")
        if kind not in _CLUSTER_WIDE and metadata.get("namespace") != NAMESPACE:
            yield Finding("namespace", title(one), f"is not in the namespace {NAMESPACE}")
        if kind == "Secret":
            yield Finding("namespace", title(one), "is a secret for everybody to read")


def network(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Nothing is open but the ways that are used, and those are; without a policy of its own a pod would be open."""
    if not any(_denies_all(policy) for policy in by_kind(objects, "NetworkPolicy")):
        yield Finding("network", "NetworkPolicy", "none denies all that is not allowed")
    used, let = addresses(objects), open_ways(objects)
    for call in sorted(used - let):
        what = f"calls {call.server} at port {call.port}, which no network policy lets through"
        yield Finding("network", call.client, what)
    inside = {call for call in let if call.client not in OUTSIDE}
    for call in sorted(inside - used):
        what = f"may call {call.server} at port {call.port}, but has no reason to"
        yield Finding("network", call.client, what)
    present = {pod.component for pod in workloads(objects) if pod.serves}
    seen = {(call.client, call.server) for call in let}
    for client, server in sorted(EDGES - seen):
        if client in OUTSIDE and server in present:
            yield Finding("network", client, f"cannot reach {server}")


def _denies_all(policy: Manifest) -> bool:
    spec = policy["spec"]
    return (
        spec["podSelector"] == {}
        and set(spec["policyTypes"]) == {"Ingress", "Egress"}
        and not (spec.get("ingress") or spec.get("egress"))
    )


def budgets(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Each of our services keeps pods while machines are emptied, and spreads them over machines."""
    found = by_kind(objects, "PodDisruptionBudget")
    for pod in (pod for pod in workloads(objects) if pod.component in SERVICES):
        if not any(selects(one["spec"]["selector"], pod.labels) for one in found):
            yield Finding("budgets", pod.where, "has no disruption budget")
        spread = pod.spec.get("topologySpreadConstraints", ())
        if not any(selects(one["labelSelector"], pod.labels) for one in spread):
            yield Finding("budgets", pod.where, "is not spread over machines")
    for one in found:
        yield from (Finding("budgets", title(one), what) for what in _stuck(one["spec"], objects))


def _stuck(spec: Mapping[str, Any], objects: Sequence[Manifest]) -> Iterator[str]:
    """Why a budget would let no pod go, so that no machine could be emptied."""
    pods = [
        pod for pod in workloads(objects) if pod.serves and selects(spec["selector"], pod.labels)
    ]
    stay, count = spec.get("minAvailable"), sum(pod.replicas for pod in pods)
    if not pods:
        yield "selects no pods"
    elif any(pod.is_ray for pod in pods) and not isinstance(stay, int):
        # Kubernetes can ask a Deployment or a StatefulSet how many pods there should be, but not a RayCluster.
        yield "says no number of pods that stay, which those of Ray need"
    elif spec.get("maxUnavailable") in (0, "0%") or (isinstance(stay, int) and stay >= count):
        yield f"lets none of {count} pods go"


def scaling(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """An autoscaler has a Deployment, which then says no number of replicas itself."""
    deployments = named(objects, "Deployment")
    for one in by_kind(objects, "HorizontalPodAutoscaler"):
        target = deployments.get(one["spec"]["scaleTargetRef"]["name"])
        if target is None:
            yield Finding("scaling", title(one), "scales a Deployment that is not there")
        elif "replicas" in target["spec"]:
            yield Finding("scaling", title(one), "is overruled by the Deployment's replicas")


def monitors(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """What Prometheus is told to read is there."""
    pods = list(workloads(objects))
    for one in by_kind(objects, "PodMonitor"):
        chosen = [pod for pod in pods if selects(one["spec"]["selector"], pod.labels)]
        if not chosen:
            yield Finding("monitors", title(one), "selects no pods")
        for endpoint in one["spec"]["podMetricsEndpoints"]:
            if any(endpoint["port"] not in pod.ports() for pod in chosen):
                yield Finding(
                    "monitors", title(one), f"reads a port {endpoint['port']}, which is none"
                )


def references(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """What is named is there: accounts, ConfigMaps, claims, Secrets and their keys."""
    secrets = {name: set(keys) for name, keys in SECRETS.items()}
    for one in by_kind(objects, "Certificate"):
        secrets[one["spec"]["secretName"]] = {"tls.crt", "tls.key", "ca.crt"}
    there: Mapping[str, set[str]] = {
        "ServiceAccount": set(named(objects, "ServiceAccount")),
        "ConfigMap": set(named(objects, "ConfigMap")) | _MADE["ConfigMap"],
        "PersistentVolumeClaim": set(named(objects, "PersistentVolumeClaim")),
    }
    for pod in workloads(objects):
        for kind, name in {
            ("ServiceAccount", pod.spec.get("serviceAccountName", "")),
            *_named_in(pod.template),
        }:
            if kind == "Secret" or name in there[kind]:
                continue
            yield Finding("references", pod.where, f"{kind} {name!r} is not there")
        for name, keys in _secrets_in(pod.template):
            missing = sorted(keys - secrets.get(name, set()))
            if name not in secrets or missing:
                what = (
                    f"Secret {name} is nobody's to make"
                    if name not in secrets
                    else f"Secret {name} has no {missing}"
                )
                yield Finding("references", pod.where, what)


def _named_in(value: Any) -> Iterator[tuple[str, str]]:
    """Kind and name of ConfigMaps and claims that a pod names."""
    for key, one in _pairs(value):
        if key in ("configMapRef", "configMapKeyRef", "configMap"):
            yield "ConfigMap", one["name"]
        elif key == "persistentVolumeClaim":
            yield "PersistentVolumeClaim", one["claimName"]


def _secrets_in(value: Any) -> Iterator[tuple[str, set[str]]]:
    """Name and keys of Secrets that a pod names; no keys: all."""
    for key, one in _pairs(value):
        if key == "secretKeyRef":
            yield one["name"], {one["key"]}
        elif key == "secret":
            yield one["secretName"], {item["key"] for item in one.get("items", ())}


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield key, one
            yield from _pairs(one)
    elif isinstance(value, list):
        for one in value:
            yield from _pairs(one)
