"""Whether what the manifests tell the services is what the code has: ports, commands, variables, addresses, files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from ray.serve.schema import ServeDeploySchema

from deploy.contract import ADDRESSES, COMMANDS, PORTS, SERVICES, environment
from deploy.manifests.findings import Finding
from deploy.manifests.graph import addresses
from deploy.manifests.render import Manifest
from deploy.manifests.workloads import Workload, by_kind, named, selects, title, workloads

__all__ = ["commands", "files", "ports", "serve", "services", "variables"]

SERVE = Path(__file__).resolve().parents[2] / "serve.yaml"

_KUBERAY = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"}
"""What `ray start`, which KubeRay runs, reads beside what the replicas do."""
_BATCH = {"VLMIR_TOKEN", "HOME"}
_SECRET = re.compile(r"(PASSWORD|SECRET|_KEY$|(?<!AUTH_)TOKEN$)")
_PATHS = ("/etc/vlmir/", "/cache", "/tmp")
_RAY_PORTS = {
    "gcs-server": "gcs",
    "dashboard": "dashboard",
    "client": "client",
    "metrics": "metrics",
}


def ports(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Pods have the ports that the code opens, all of them, and are told to open these."""
    maps = _maps(objects)
    for pod in (pod for pod in workloads(objects) if pod.serves):
        wanted = _ports_of(pod)
        if pod.ports() != wanted:
            yield Finding("ports", pod.where, f"has the ports {pod.ports()}, the code {wanted}")
        if pod.component not in SERVICES or pod.is_ray:
            continue
        told = pod.variables(pod.spec["containers"][0], maps)
        for name, port in (("VLMIR_PORT", "grpc"), ("VLMIR_METRICS_PORT", "metrics")):
            if told.get(name) != str(wanted[port]):
                yield Finding("ports", pod.where, f"{name} is {told.get(name)}, not {wanted[port]}")
        if told.get("VLMIR_HOST") != "0.0.0.0":
            yield Finding("ports", pod.where, "listens where other pods cannot reach it")


def _ports_of(pod: Workload) -> dict[str, int]:
    if not pod.is_ray:
        return dict(PORTS[pod.component])
    ray = {name: PORTS["ray"][key] for name, key in _RAY_PORTS.items()}
    if not pod.where.endswith(" head"):
        ray = {"metrics": ray["metrics"]}
    if pod.owner["kind"] == "RayJob":
        return ray
    restorer = PORTS["restorer"]
    return ray | {"serve": restorer["http"], "serve-grpc": restorer["grpc"]}


def services(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Services find pods and ports; an address that stands for all pods belongs to a Service without one of its own."""
    pods = list(workloads(objects))
    for one in by_kind(objects, "Service"):
        selector = {k: v for k, v in one["spec"]["selector"].items() if not k.startswith("ray.io/")}
        behind = [pod for pod in pods if selects({"matchLabels": selector}, pod.labels)]
        if not behind:
            yield Finding("services", title(one), "selects no pods")
        for port in one["spec"]["ports"]:
            for pod in behind:
                if pod.ports().get(port["targetPort"]) != port["port"]:
                    what = (
                        f"port {port['port']} is not the port {port['targetPort']} of {pod.where}"
                    )
                    yield Finding("services", title(one), what)
    headless = {
        name
        for name, one in named(objects, "Service").items()
        if one["spec"].get("clusterIP") == "None"
    }
    for pod in pods:
        for name, text in _texts(pod, objects):
            for host in re.findall(r"dns:///([a-z0-9-]+):", text):
                if host not in headless:
                    what = f"{name} takes the pods behind {host} in turn, whose Service hides them"
                    yield Finding("services", pod.where, what)


def commands(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Containers run what the code has."""
    for pod in workloads(objects):
        name = pod.labels.get("app.kubernetes.io/name", "").removeprefix("vlmir-")
        container = pod.spec["containers"][0]
        if pod.is_ray or name not in COMMANDS:
            continue
        runs = [*container.get("command", ()), *container.get("args", ())]
        wanted = list(COMMANDS[name])
        if [_plain(word) for word in runs] != wanted:
            yield Finding("commands", pod.where, f"runs {runs}, the code has {wanted}")


def _plain(word: str) -> str:
    """A word of a command as on one machine: names without prefix, one node of MinIO."""
    word = re.sub(r"^http://vlmir-minio-\{.*\}\.vlmir-minio-nodes:9000/data$", "/data", word)
    return word.replace("//vlmir-", "//")


def variables(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Every variable is one that is read, secrets come from Secrets, and each address is in its own variable."""
    maps = _maps(objects)
    told = dict[str, set[str]]()
    for pod in workloads(objects):
        for container in pod.spec["containers"]:
            found = pod.variables(container, maps)
            yield from _unknown(pod, container, found)
            told.setdefault(pod.component, set()).update(found)
    for call in sorted(addresses(objects)):
        name = ADDRESSES.get((call.client, call.server), "")
        if name and name not in told.get(call.client, ()):
            what = f"calls {call.server}, but not by {name}"
            yield Finding("variables", call.client, what)


def _unknown(
    pod: Workload, container: Manifest, found: Mapping[str, str | None]
) -> Iterator[Finding]:
    known = _known(pod)
    used = {name for value in found.values() for name in re.findall(r"\$\((\w+)\)", value or "")}
    for name, value in found.items():
        if name not in known | used:
            yield Finding("variables", pod.where, f"{container['name']}: nobody reads {name}")
        literal = value and not value.startswith(("/", "$(")) and _SECRET.search(name)
        if literal:
            what = f"{container['name']}: {name} is in the manifest, not in a Secret"
            yield Finding("variables", pod.where, what)


def _known(pod: Workload) -> set[str]:
    """What a pod's main container reads."""
    if pod.component == "batch":
        return _BATCH
    return {*environment(pod.component), *(_KUBERAY if pod.is_ray else ())}


def files(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """A file or folder that a variable names lies in a volume."""
    for pod in workloads(objects):
        mounts = {
            mount["mountPath"]
            for container in pod.containers
            for mount in container.get("volumeMounts", ())
        }
        for name, text in _texts(pod, objects):
            path = text.rpartition("=")[2] if text.startswith("--") else text
            inside = any(path == mount or path.startswith(f"{mount}/") for mount in mounts)
            if path.startswith(_PATHS) and not inside:
                yield Finding("files", pod.where, f"{name} is {path}, where nothing is mounted")


def serve(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """The Serve config is deploy/serve.yaml's, but for where its proxies are and listen; Ray knows all its fields."""
    for one in by_kind(objects, "RayService"):
        config = yaml.safe_load(one["spec"]["serveConfigV2"])
        wanted = yaml.safe_load(SERVE.read_text("utf-8"))
        wanted["proxy_location"] = "EveryNode"
        wanted["http_options"]["host"] = "0.0.0.0"
        faults = list(_unlike(config, wanted, ""))
        try:
            model = ServeDeploySchema.model_validate(config)
        except ValueError as error:
            faults.append(f"Ray does not take it: {error}")
        else:
            faults += [f"Ray knows no {key}" for key in _strangers(config, model)]
        yield from (Finding("serve", title(one), what) for what in faults)


def _unlike(config: Any, wanted: Any, place: str) -> Iterator[str]:
    if isinstance(config, dict) and isinstance(wanted, dict):
        for key in sorted({*config, *wanted}):
            yield from _unlike(config.get(key), wanted.get(key), f"{place}.{key}".lstrip("."))
    elif config != wanted:
        yield f"{place} is {config}, in deploy/serve.yaml {wanted}"


def _strangers(config: Any, model: Any, place: str = "") -> Iterator[str]:
    """Keys that Ray's own models do not have; plain dicts within them are anybody's."""
    if isinstance(config, list) and isinstance(model, list):
        for number, (one, its) in enumerate(zip(config, model, strict=True)):
            yield from _strangers(one, its, f"{place}{number}.")
    fields = getattr(type(model), "model_fields", None)
    if not isinstance(config, dict) or fields is None:
        return
    for key, value in config.items():
        if key not in fields:
            yield place + key
        else:
            yield from _strangers(value, getattr(model, key), f"{place}{key}.")


def _maps(objects: Sequence[Manifest]) -> dict[str, Mapping[str, str]]:
    return {name: one.get("data", {}) for name, one in named(objects, "ConfigMap").items()}


def _texts(pod: Workload, objects: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    """Name and text of all variables, and of all words of commands and probes."""
    maps = _maps(objects)
    for container in pod.containers:
        for name, value in pod.variables(container, maps).items():
            if value:
                yield name, value
        words = [*container.get("command", ()), *container.get("args", ())]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            words += container.get(probe, {}).get("exec", {}).get("command", ())
        yield from (("a word of a command", word) for word in words)
