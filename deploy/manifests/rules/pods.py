"""What a pod may do, has to say of itself, and needs to run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from deploy.contract import COMMANDS, IMAGES, SERVICES
from deploy.manifests.findings import Finding
from deploy.manifests.render import Manifest
from deploy.manifests.workloads import Workload, named, workloads
from vlmir import __version__

__all__ = ["grace", "hardened", "images", "probes", "resources", "volumes"]

_IMAGE_OF: Mapping[str, str] = {
    "batch": "training",
    "buckets": "mc",
    "models": "training",
    "seed": "training",
}
"""Part → whose image it has, if not its own."""
_RAY_AGENT = 52365
"""Port of the agent on each of Ray's nodes; Ray's pods need not list it."""
_SPARE_S = 5.0
"""Seconds that a server needs beside its grace, to send traces and to close."""
_UNITS: Mapping[str, float] = {
    "": 1,
    "m": 1e-3,
    **{unit: 1024 ** (n + 1) for n, unit in enumerate(("Ki", "Mi", "Gi", "Ti"))},
}
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}


def hardened(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Pods meet Kubernetes' standard `restricted` and more: a read-only root, no token, no variables of Services."""
    for pod in workloads(objects):
        security = pod.spec.get("securityContext", {})
        checks = {
            "may run as root": security.get("runAsNonRoot") is not True,
            "runs as root": security.get("runAsUser") in (0, None),
            "has no seccomp profile": security.get("seccompProfile", {}).get("type")
            != "RuntimeDefault",
            "mounts a token of its account": pod.spec.get("automountServiceAccountToken")
            is not False,
            "gets variables of all Services": pod.spec.get("enableServiceLinks") is not False,
            "shares a namespace of its host": any(
                pod.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")
            ),
        }
        for container in pod.containers:
            own, name = container.get("securityContext", {}), container["name"]
            checks |= {
                f"{name} is privileged": own.get("privileged", False),
                f"{name} may gain privileges": own.get("allowPrivilegeEscalation") is not False,
                f"{name} can write its root": own.get("readOnlyRootFilesystem") is not True,
                f"{name} keeps capabilities": own.get("capabilities") != {"drop": ["ALL"]},
                f"{name} may run as root": own.get("runAsNonRoot") is False
                or own.get("runAsUser") == 0,
            }
        yield from (Finding("hardened", pod.where, what) for what, wrong in checks.items() if wrong)


def images(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Images are the part's own, in any registry, and do not move: by a digest, or by the tag that is meant."""
    for pod in workloads(objects):
        for container in pod.containers:
            what = _unfit(container["image"], _IMAGE_OF.get(pod.component, pod.component))
            if what:
                yield Finding("images", pod.where, f"{container['image']} {what}")


def _unfit(image: str, part: str) -> str:
    place, _, digest = image.partition("@")
    name, _, tag = place.rpartition("/")[2].partition(":")
    meant = IMAGES.get(part, f"{part}:{__version__}").rpartition("/")[2]
    if name != meant.partition(":")[0]:
        return f"is no image of {part}"
    if digest:
        return "" if re.fullmatch("sha256:[0-9a-f]{64}", digest) else "has a digest that is none"
    if tag in ("", "latest"):
        return "has no tag that stays"
    return "" if f"{name}:{tag.removesuffix('-cuda')}" == meant else f"is not {meant}"


def probes(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """What serves says when it has started, lives and is ready; its probes ask at ports that it has."""
    for pod in (pod for pod in workloads(objects) if pod.serves):
        ports = pod.ports()
        for container in pod.spec["containers"]:
            for kind in _PROBES:
                probe = container.get(kind)
                what = f"has no {kind}" if probe is None else _misdirected(probe, ports, pod)
                if what:
                    yield Finding("probes", pod.where, f"{container['name']} {kind}: {what}")


def _misdirected(probe: Mapping[str, Any], ports: Mapping[str, int], pod: Workload) -> str:
    numbers = {*ports.values(), *([_RAY_AGENT] if pod.is_ray else [])}
    command = probe.get("exec", {}).get("command", [])
    speaks_grpc = "grpc" in probe or tuple(command[:3]) == COMMANDS["probe"]
    if pod.component in SERVICES and not pod.is_ray and not speaks_grpc:
        return "does not ask by gRPC, so it knows nothing of what is served"
    if "grpc" in probe:
        return (
            "" if probe["grpc"]["port"] == ports.get("grpc") else "asks at another port than grpc"
        )
    if "httpGet" in probe:
        port = probe["httpGet"]["port"]
        return "" if port in numbers or port in ports else f"asks at port {port}, which is none"
    asked = {int(port) for word in command for port in re.findall(r"^[\w.]+:(\d+)$", word)}
    if not command:
        return "asks nothing"
    return "" if asked <= numbers else f"asks at port {sorted(asked - numbers)[0]}, which is none"


def resources(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Containers ask for processors and memory, are bounded in both, and ask for no more than their bounds."""
    for pod in workloads(objects):
        for container in pod.containers:
            given = container.get("resources", {})
            asked, bounds = given.get("requests", {}), given.get("limits", {})
            faults = [
                *(f"no {what} in its requests" for what in ("cpu", "memory") if what not in asked),
                *(f"no {what} in its limits" for what in ("cpu", "memory") if what not in bounds),
                *(
                    f"more {what} in its requests than in its limits"
                    for what in asked
                    if what in bounds and _amount(asked[what]) > _amount(bounds[what])
                ),
            ]
            for what in faults:
                yield Finding("resources", pod.where, f"{container['name']} has {what}")


def _amount(quantity: str) -> float:
    """A quantity such as 250m or 2Gi as a number."""
    number = str(quantity).rstrip("KMGTim")
    return float(number) * _UNITS[str(quantity)[len(number) :]]


def volumes(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Each mount has its volume and each volume its mount, nothing is the host's, and /tmp can be written."""
    for pod in workloads(objects):
        declared = {one["name"]: one for one in pod.spec.get("volumes", ())}
        claims = pod.owner.get("spec", {}).get("volumeClaimTemplates", ())
        names = {*declared, *(claim["metadata"]["name"] for claim in claims)}
        mounts = [(one["name"], mount) for one in pod.containers for mount in _mounts(one)]
        used = {mount["name"] for _, mount in mounts}
        faults = [
            *(f"{name} is no volume" for name in sorted(used - names)),
            *(f"the volume {name} is mounted nowhere" for name in sorted(names - used)),
            *(
                f"the volume {name} is of a kind that is not allowed"
                for name, one in declared.items()
                if not (set(one) - {"name"}) <= _VOLUMES
            ),
        ]
        for container in pod.spec["containers"]:
            if "/tmp" not in {mount["mountPath"] for mount in _mounts(container)}:
                faults.append(f"{container['name']} has no /tmp to write to")
        yield from (Finding("volumes", pod.where, what) for what in faults)


def _mounts(container: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    mounts: Sequence[Mapping[str, Any]] = container.get("volumeMounts", ())
    return mounts


def grace(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Kubernetes waits longer for a pod to end than the server in it takes to drain."""
    maps = {name: one.get("data", {}) for name, one in named(objects, "ConfigMap").items()}
    for pod in (pod for pod in workloads(objects) if pod.serves):
        granted = pod.spec.get("terminationGracePeriodSeconds", 30)
        needed = _draining_s(pod)
        for container in pod.spec["containers"]:
            told = pod.variables(container, maps)
            own = sum(float(told.get(f"VLMIR_{name}_S") or 0) for name in ("GRACE", "DRAIN"))
            ray = float(told.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") or 0)
            needed = max(needed, own, ray)
        if needed and granted < needed + _SPARE_S:
            what = f"is ended after {granted} s, but needs {needed:g} s to drain"
            yield Finding("grace", pod.where, what)


def _draining_s(pod: Workload) -> float:
    """Seconds that the replicas of a Serve app have to end."""
    config = yaml.safe_load(pod.owner.get("spec", {}).get("serveConfigV2", "{}"))
    return max(
        (
            float(deployment.get("graceful_shutdown_timeout_s", 0))
            for application in config.get("applications", ())
            for deployment in application.get("deployments", ())
        ),
        default=0.0,
    )
