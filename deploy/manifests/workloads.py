"""What runs: the pods that manifests describe, whichever kind of object makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.manifests.render import Manifest

__all__ = ["COMPONENT", "NAME", "Workload", "by_kind", "named", "selects", "title", "workloads"]

NAME = "app.kubernetes.io/name"
"""Label by which Services and budgets find pods."""

COMPONENT = "app.kubernetes.io/component"
"""Label of pods: which part of the architecture they are."""

_JOBS = ("Job", "CronJob")


@dataclass(frozen=True)
class Workload:
    """Pods that are alike."""

    owner: Manifest
    """The object that makes them."""
    template: Manifest
    """What they are made from: metadata and spec."""
    where: str
    """Kind and name, for messages."""
    replicas: int = 1
    """How many there are at least, if no autoscaler says otherwise."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Of the pods."""
        labels: Mapping[str, str] = self.template.get("metadata", {}).get("labels", {})
        return labels

    @property
    def component(self) -> str:
        """Their part of the architecture; empty where none is named."""
        return self.labels.get(COMPONENT, "")

    @property
    def spec(self) -> Mapping[str, Any]:
        """Of the pods."""
        spec: Mapping[str, Any] = self.template["spec"]
        return spec

    @property
    def containers(self) -> list[Manifest]:
        """All containers, those that run first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def serves(self) -> bool:
        """Whether it runs until it is stopped."""
        return self.owner["kind"] not in _JOBS

    @property
    def is_ray(self) -> bool:
        """Whether KubeRay makes the pods, and their command."""
        return str(self.owner["apiVersion"]).startswith("ray.io/")

    def ports(self) -> dict[str, int]:
        """Name → number of all ports of the main containers."""
        return {
            port["name"]: port["containerPort"]
            for container in self.spec["containers"]
            for port in container.get("ports", ())
        }

    def variables(
        self, container: Manifest, config_maps: Mapping[str, Mapping[str, str]]
    ) -> dict[str, str | None]:
        """A container's variables, those of ConfigMaps included; None: the value is in a Secret."""
        found: dict[str, str | None] = {}
        for source in container.get("envFrom", ()):
            found |= config_maps.get(source.get("configMapRef", {}).get("name", ""), {})
        for entry in container.get("env", ()):
            found[entry["name"]] = entry.get("value")
        return found


def workloads(objects: Iterable[Manifest]) -> Iterator[Workload]:
    """All pods of the manifests."""
    for one in objects:
        for suffix, template, replicas in _templates(one):
            yield Workload(one, template, title(one) + suffix, replicas)


def _templates(one: Manifest) -> Iterator[tuple[str, Manifest, int]]:
    spec = one.get("spec", {})
    match one["kind"]:
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
            yield "", spec["template"], spec.get("replicas", 1)
        case "CronJob":
            yield "", spec["jobTemplate"]["spec"]["template"], 1
        case "RayService" | "RayJob":
            cluster = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
            yield " head", cluster["headGroupSpec"]["template"], 1
            for group in cluster.get("workerGroupSpecs", ()):
                yield f" {group['groupName']}", group["template"], group["minReplicas"]


def title(one: Manifest) -> str:
    """Kind and name."""
    return f"{one['kind']} {one['metadata']['name']}"


def by_kind(objects: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    """The objects of some kinds."""
    return [one for one in objects if one["kind"] in kinds]


def named(objects: Iterable[Manifest], kind: str) -> dict[str, Manifest]:
    """Name → object of a kind."""
    return {one["metadata"]["name"]: one for one in by_kind(objects, kind)}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector, with matchLabels and matchExpressions, selects what has these labels."""
    wanted = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(one, labels) for one in selector.get("matchExpressions", ()))


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", ())
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise ValueError(f"no such operator: {expression['operator']}")
