"""What deploy/compose.yaml has to be, as a check that names each fault."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from deploy.contract import ADDRESSES, COMMANDS, EDGES, IMAGES, PORTS, SERVICES, environment
from tests.unit.deploy.dockerfiles import DOCKER, instructions, last, stages

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
OURS = {*SERVICES, "mlflow", "models", "seed"}
JOBS = {"seed", "buckets", "minio-owner"}
PAGES = {"mlflow": "http", "minio": "console", "prometheus": "http", "grafana": "http"}
KEYS = {
    *("image", "profiles", "user", "init", "command", "entrypoint", "environment", "secrets"),
    *("volumes", "tmpfs", "shm_size", "networks", "network_mode", "depends_on", "healthcheck"),
    *("stop_grace_period", "stop_signal", "deploy", "ports", "read_only", "cap_drop", "cap_add"),
    *("security_opt", "restart", "logging", "ulimits"),
}
# Pairs that share a network, and so could talk, though they need not: who is called by the same is beside each other.
_GROUPS = (
    ("captioner", "embedder", "models", "sampler", "seed"),
    ("buckets", "mlflow", "models", "restorer", "sampler", "seed", "triton"),
)
BESIDE = {
    pair
    for pair in (
        *(pair for group in _GROUPS for pair in combinations(group, 2)),
        *((one, "prometheus") for one in ("buckets", "mlflow", "models", "seed")),
    )
    if not {pair, pair[::-1]} & EDGES
}
SECRET = re.compile(r"(?i)password|secret|token|private")
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?:(:[-?+])([^${}]*))?\}")


def substituted(text: str, given: Mapping[str, str]) -> str:
    """A text as Compose reads it, variables replaced."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name, how, other = found.groups()
        if how == ":+":
            return other if given.get(name) else ""
        if not given.get(name) and how == ":?":
            raise ValueError(f"{name}: {other}")
        return given.get(name) or other or ""

    return _VARIABLE.sub(value, text)


def read(text: str, **given: str) -> dict[str, Any]:
    """A compose file as Compose reads it."""
    walked: dict[str, Any] = _walk(yaml.load(text, Loader=yaml.CSafeLoader), given)
    return walked


def _walk(value: Any, given: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _walk(each, given) for key, each in value.items()}
    if isinstance(value, list):
        return [_walk(each, given) for each in value]
    return substituted(value, given) if isinstance(value, str) else value


def kind(name: str) -> str:
    """``sampler-gpu`` is a sampler."""
    return name.removesuffix("-gpu")


def networks(service: Mapping[str, Any]) -> set[str]:
    return set(service.get("networks", ()))


def faults(compose: Mapping[str, Any]) -> list[str]:
    """What is wrong with a compose file; empty: nothing."""
    found = list(_of_the_whole(compose))
    for name, service in compose["services"].items():
        checks = (*(_hardened, _profiled, _called, _told, _mounted, _waiting, _adopted, _stopping),)
        found += [f"{name}: {fault}" for check in checks for fault in check(name, service, compose)]
    return found


def _of_the_whole(compose: Mapping[str, Any]) -> Iterator[str]:
    services = compose["services"]
    for what in ("networks", "volumes", "secrets"):
        used = {each for service in services.values() for each in _names(service, what)}
        yield from (f"{what}: {each} is not declared" for each in used - set(compose[what]))
        yield from (f"{what}: {each} is not used" for each in set(compose[what]) - used)
    for client, server in EDGES:
        for one in (name for name in services if kind(name) == client):
            if not any(
                networks(services[one]) & networks(services[other])
                for other in services
                if kind(other) == server
            ):
                yield f"{one} cannot reach {server}"
    for one, other in combinations(sorted(services), 2):
        pair = kind(one), kind(other)
        if pair[0] == pair[1] or not networks(services[one]) & networks(services[other]):
            continue
        if not {pair, pair[::-1]} & (EDGES | BESIDE):
            yield f"{one} and {other} share a network"
    for name, network in compose["networks"].items():
        members = [one for one, service in services.items() if name in networks(service)]
        if not (network or {}).get("internal") and len(members) > 1:
            yield f"the network {name} has a way out and {len(members)} members"


def _names(service: Mapping[str, Any], what: str) -> set[str]:
    if what == "volumes":
        return {
            each.partition(":")[0] for each in service.get("volumes", ()) if each[0] not in "./"
        }
    return set(service.get(what, ()))


def _hardened(name: str, service: Mapping[str, Any], _: Any) -> Iterator[str]:
    yield from (f"{key} is not known" for key in set(service) - KEYS)
    if service.get("read_only") is not True:
        yield "its root can be written"
    if service.get("cap_drop") != ["ALL"]:
        yield "it keeps capabilities"
    if service.get("cap_add") and (name, service["cap_add"]) != ("minio-owner", ["CHOWN"]):
        yield "it gets capabilities"
    if service.get("security_opt") != ["no-new-privileges:true"]:
        yield "it may get privileges"
    if service.get("network_mode", "none") != "none":
        yield "it has no network of its own"
    user = str(service.get("user", ""))
    if not user and kind(name) not in OURS:
        yield "its user is the image's"
    if user.startswith(("0", "root")) and name != "minio-owner":
        yield "it is root"
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if not {"memory", "pids"} <= set(limits):
        yield "memory or processes have no limit"
    if service.get("restart") != ("no" if name in JOBS else "unless-stopped"):
        yield f"restart is {service.get('restart')}"
    if not service.get("logging", {}).get("options", {}).get("max-size"):
        yield "its log grows for ever"
    if not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?", service["image"]):
        yield f"the image is {service['image']}"


def _profiled(name: str, service: Mapping[str, Any], _: Any) -> Iterator[str]:
    wanted = ["cpu", "gpu"]
    if kind(name) in ("prometheus", "grafana"):
        wanted = ["monitoring"]
    elif kind(name) in ("sampler", "triton"):
        wanted = ["gpu" if name.endswith("-gpu") else "cpu"]
    if service.get("profiles") != wanted:
        yield f"its profiles are {service.get('profiles')}"
    reserved = "reservations" in service["deploy"]["resources"]
    if reserved != name.endswith("-gpu"):
        yield "a processor for graphics is reserved, or none where one is wanted"
    if name.endswith("-gpu"):
        aliases = [
            alias
            for one in service["networks"].values()
            for alias in (one or {}).get("aliases", ())
        ]
        if aliases != [kind(name)]:
            yield f"it is called {aliases}"


def _called(name: str, service: Mapping[str, Any], _: Any) -> Iterator[str]:
    command = _command(name, service)
    if kind(name) in COMMANDS and command != COMMANDS[kind(name)]:
        yield f"the command is {command}"
    if kind(name) in OURS:
        image = _image(name)
        suffix = "-cuda" if name == "sampler-gpu" else ""
        if not re.fullmatch(rf"ghcr\.io/vlmir/{image}:[\d.]+{suffix}", service["image"]):
            yield f"the image is {service['image']}"
    else:
        image = {"buckets": "mc", "minio-owner": "postgres"}.get(name, kind(name))
        if service["image"] != IMAGES[image]:
            yield f"the image is {service['image']}"
    for published in service.get("ports", ()):
        host, _, inside = published.split(":")
        if name != "gateway" and host != "127.0.0.1":
            yield f"{published} is open to all"
        wanted = {"gateway": "grpc", **PAGES}.get(name)
        if wanted is None or int(inside) != PORTS[name][wanted]:
            yield f"{published} is published"


def _command(name: str, service: Mapping[str, Any]) -> tuple[str, ...]:
    command = tuple(service.get("command", ()))
    if kind(name) not in OURS or "entrypoint" in service:
        return command
    stage = stages(instructions((DOCKER / f"{_image(name)}.Dockerfile").read_text("utf-8")))[-1]
    entry = yaml.safe_load(last(stage, "ENTRYPOINT"))
    return (*(entry[1:] if name == "mlflow" else entry), *command)


def _image(name: str) -> str:
    return "training" if name in ("models", "seed") else kind(name)


def _told(name: str, service: Mapping[str, Any], _: Any) -> Iterator[str]:
    given = service.get("environment", {})
    known = environment(kind(name)) if kind(name) != "minio-owner" else frozenset()
    yield from (f"{key} is read by nobody" for key in given if key not in known)
    yield from (f"{key} is no text" for key, value in given.items() if not isinstance(value, str))
    for (client, server), variable in ADDRESSES.items():
        if client != kind(name) or not variable:
            continue
        address = given.get(variable, "")
        split = urlsplit(address if "//" in address else f"//{address}")
        ports = PORTS[server]
        port = ports.get("s3") or ports.get("grpc") or ports.get("http") or ports["postgres"]
        if (split.hostname, split.port) != (server, port):
            yield f"{variable} is {address!r}, not {server}:{port}"
        if split.password:
            yield f"{variable} has a password"
        if server == "postgres" and split.scheme != "postgresql+psycopg2":
            yield f"{variable} does not name the driver that is installed"
    if name in ("gateway", "captioner", "sampler", "embedder"):
        own = (given.get("VLMIR_PORT"), given.get("VLMIR_METRICS_PORT"), given.get("VLMIR_HOST"))
        if own != (str(PORTS[name]["grpc"]), str(PORTS[name]["metrics"]), "0.0.0.0"):
            yield f"it listens at {own}"
    for key, value in ((key, str(value)) for key, value in given.items()):
        is_file = value.startswith("/run/secrets/")
        if SECRET.search(key) and not is_file:
            yield f"a secret in {key}"
        if is_file and value.split("/")[-1] not in service["secrets"]:
            yield f"{value} is not given to it"


def _mounted(name: str, service: Mapping[str, Any], _: Any) -> Iterator[str]:
    for mount in service.get("volumes", ()):
        source, target, *mode = mount.split(":")
        if source.startswith("."):
            if not (DEPLOY / source).exists():
                yield f"{source} is missing"
            if mode != ["ro"]:
                yield f"{source} can be written"
        if target == "/var/run/docker.sock" or source.startswith("/"):
            yield f"{source} is the machine's"
    targets = {mount.split(":")[1] for mount in service.get("volumes", ())}
    cache = service.get("environment", {}).get("VLMIR_CACHE")
    if cache and cache not in targets:
        yield f"{cache} is no volume"
    places = {each.partition(":")[0] for each in service.get("tmpfs", ())}
    if name not in ("minio-owner", "prometheus") and "/tmp" not in places:
        yield "it has no /tmp"
    yield from (f"{each} has no size" for each in service.get("tmpfs", ()) if "size=" not in each)


def _adopted(name: str, _: Any, compose: Mapping[str, Any]) -> Iterator[str]:
    """`up --wait` takes a job that ended for a failure, unless what goes on running waits for its end."""
    servers = (one for other, one in compose["services"].items() if other not in JOBS)
    if name in JOBS and not any(name in one.get("depends_on", {}) for one in servers):
        yield "nobody waits for its end"


def _waiting(name: str, service: Mapping[str, Any], compose: Mapping[str, Any]) -> Iterator[str]:
    services = compose["services"]
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            yield f"it waits for {other}, which is not there"
            continue
        finished = how["condition"] == "service_completed_successfully"
        if finished != (other in JOBS):
            yield f"it waits for {other} in vain"
        if how["condition"] == "service_healthy" and not _has_check(other, services[other]):
            yield f"{other} has no health check"
        always = set(service["profiles"]) <= set(services[other]["profiles"])
        if how.get("required", True) != always:
            yield f"{other} may not be there"
    for port in _probed(service):
        known = PORTS.get(kind(name), {}).values()
        if port not in known:
            yield f"its health check asks port {port}"
    if name not in JOBS and not _has_check(name, service):
        yield "it has no health check"


def _has_check(name: str, service: Mapping[str, Any]) -> bool:
    if "healthcheck" in service:
        return "test" in service["healthcheck"] and "disable" not in service["healthcheck"]
    if kind(name) not in OURS:
        return False
    text = (DOCKER / f"{_image(name)}.Dockerfile").read_text("utf-8")
    return last(stages(instructions(text))[-1], "HEALTHCHECK") not in ("", "NONE")


def _probed(service: Mapping[str, Any]) -> Iterator[int]:
    test = " ".join(service.get("healthcheck", {}).get("test", ()))
    return (int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", test))


def _stopping(name: str, service: Mapping[str, Any], _: Any) -> Iterator[str]:
    if name in JOBS:
        return
    patience = int(service.get("stop_grace_period", "0s").removesuffix("s"))
    grace = float(service.get("environment", {}).get("VLMIR_GRACE_S", 0))
    if name == "restorer":
        serve = yaml.safe_load((DEPLOY / "serve.yaml").read_text("utf-8"))
        (deployment,) = serve["applications"][0]["deployments"]
        grace = deployment["graceful_shutdown_timeout_s"]
    if kind(name) in SERVICES and grace < 120:
        yield "running calls are cut off sooner than Ray's"
    if patience <= grace or patience < 30:
        yield f"it is killed after {patience} s, its grace is {grace:.0f} s"
