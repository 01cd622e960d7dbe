"""Bringing manifests into a cluster, in the order in which they need one another, and out of it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from deploy.manifests.kubectl import KubectlError, kubectl
from deploy.manifests.render import Manifest
from deploy.manifests.secrets import NAMESPACE, require_secrets, secret_value
from deploy.manifests.workloads import by_kind, named
from vlmir.errors import OptionError, UnavailableError

__all__ = ["deploy", "undeploy"]

Say = Callable[[str], None]

_DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "RayService": ("rayservices.ray.io", "KubeRay"),
    "RayJob": ("rayjobs.ray.io", "KubeRay"),
    "Certificate": ("certificates.cert-manager.io", "cert-manager"),
    "Issuer": ("issuers.cert-manager.io", "cert-manager"),
    "Gateway": ("gateways.gateway.networking.k8s.io", "the Gateway API"),
    "GRPCRoute": ("grpcroutes.gateway.networking.k8s.io", "the Gateway API"),
    "HTTPRoute": ("httproutes.gateway.networking.k8s.io", "the Gateway API"),
    "BackendTLSPolicy": ("backendtlspolicies.gateway.networking.k8s.io", "the Gateway API 1.4"),
    "PodMonitor": ("podmonitors.monitoring.coreos.com", "Prometheus' operator"),
}
"""Kind → its definition in the cluster, and who brings it."""

_PRUNED = (
    *("Deployment", "Service", "ServiceAccount", "ConfigMap", "NetworkPolicy"),
    *("HorizontalPodAutoscaler", "PodDisruptionBudget", "CronJob"),
    *("RayService", "Certificate", "Gateway", "GRPCRoute", "HTTPRoute", "BackendTLSPolicy"),
    "PodMonitor",
)
"""Kinds of which what is no longer rendered is deleted: none that holds data, no Secret, and no running job."""

_KEPT = {"Namespace", "PersistentVolumeClaim", "StatefulSet"}
_LAST = {"HorizontalPodAutoscaler", "CronJob", "PodMonitor"}
_PART = "app.kubernetes.io/part-of=vlmir"
_EARLY_JOBS = ("vlmir-buckets", "vlmir-mlflow-migrate")
_REGISTRY, _SEED, _GATEWAY = "vlmir-mlflow", "vlmir-seed", "vlmir-gateway"
_EXAMPLE = ".example.com"


def deploy(objects: Sequence[Manifest], *, wait: str = "15m", say: Say = print) -> None:
    """Apply manifests and wait until all of it runs. They have been validated.

    Args:
        objects: The manifests.
        wait: How long each part may take, such as 15m.
        say: Told of each step.

    Raises:
        OptionError: The names by which users reach the cluster are still the examples.
        UnavailableError: No cluster answers, or it lacks what the manifests build on.
        KubectlError: The cluster refuses something, or a part does not start in time.
    """
    _require_own_names(objects)
    _require_definitions(objects)
    _apply(by_kind(objects, "Namespace"))
    require_secrets(objects)
    deployments, jobs = named(objects, "Deployment"), named(objects, "Job")
    later = {"Namespace", "StatefulSet", "Deployment", "Job", "RayService", *_LAST}
    say("applying what everything else needs")
    _apply([one for one in objects if one["kind"] not in later])
    _copy_authority(objects, wait)
    for name, one in named(objects, "StatefulSet").items():
        say(f"starting {name}")
        _apply([one])
        _rolled_out("statefulset", name, wait)
    _run([jobs[name] for name in _EARLY_JOBS], wait, say)
    say(f"starting {_REGISTRY}")
    _apply([deployments.pop(_REGISTRY)])
    _rolled_out("deployment", _REGISTRY, wait)
    _run([jobs[_SEED]], wait, say)
    gateway = deployments.pop(_GATEWAY)
    say("starting the services")
    _apply([*deployments.values()])
    for name in deployments:
        _rolled_out("deployment", name, wait)
    for name, one in named(objects, "RayService").items():
        say(f"starting {name}")
        _apply([one])
        _kubectl("wait", "--for=condition=Ready", f"rayservice/{name}", f"--timeout={wait}")
    say(f"starting {_GATEWAY}")
    _apply([gateway, *by_kind(objects, *_LAST)])
    _rolled_out("deployment", _GATEWAY, wait)
    _prune(objects, say)


def undeploy(objects: Sequence[Manifest], *, with_data: bool = False, say: Say = print) -> None:
    """Take manifests out of a cluster. Volumes, Secrets and the namespace stay.

    Args:
        objects: The manifests.
        with_data: Delete the volumes, too: pictures, runs and the registry.
        say: Told of each step.
    """
    gone = [one for one in objects if one["kind"] not in _KEPT - {"StatefulSet"}]
    say("deleting all but volumes and Secrets")
    _kubectl("delete", "--ignore-not-found", "--filename=-", given=_list(gone))
    if with_data:
        say("deleting the volumes")
        _kubectl("delete", "persistentvolumeclaim", f"--selector={_PART}")


def _kubectl(*arguments: str, given: str | None = None) -> str:
    return kubectl("--namespace", NAMESPACE, *arguments, given=given)


def _list(objects: Iterable[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def _apply(objects: Sequence[Manifest]) -> None:
    """By the server, which tells who else has set a field; what others have set is not overwritten."""
    _kubectl(
        "apply", "--server-side", "--field-manager=vlmir", "--filename=-", given=_list(objects)
    )


def _require_own_names(objects: Sequence[Manifest]) -> None:
    edge = named(objects, "ConfigMap").get("vlmir-edge", {}).get("data", {})
    for key, value in edge.items():
        if value.endswith(_EXAMPLE) or value == "example":
            raise OptionError(
                f"{key} is still the example, {value}; put your own into edge.yaml in the overlay's folder."
            )


def _require_definitions(objects: Sequence[Manifest]) -> None:
    there = kubectl("get", "customresourcedefinitions", "--output=name")
    for kind, (definition, project) in _DEFINITIONS.items():
        if by_kind(objects, kind) and f"/{definition}\n" not in f"{there}\n":
            raise UnavailableError(
                f"The cluster knows no {kind}; install {project}, or leave out what needs it (deploy/k8s/README.md)."
            )


def _copy_authority(objects: Sequence[Manifest], wait: str) -> None:
    """The authority's certificate as a ConfigMap, without its key, where a policy of the Gateway API looks for it."""
    if not by_kind(objects, "BackendTLSPolicy"):
        return
    _kubectl(
        "wait",
        "--for=condition=Ready",
        "certificates.cert-manager.io/vlmir-ca",
        f"--timeout={wait}",
    )
    authority = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "vlmir-ca", "namespace": NAMESPACE},
        "data": {"ca.crt": secret_value("vlmir-ca", "ca.crt")},
    }
    _apply([authority])


def _run(jobs: Sequence[Manifest], wait: str, say: Say) -> None:
    """Run jobs anew: what a job does cannot be changed."""
    names = [f"job/{one['metadata']['name']}" for one in jobs]
    say(f"running {', '.join(names)}")
    _kubectl("delete", "--ignore-not-found", *names)
    _apply(jobs)
    try:
        _kubectl("wait", "--for=condition=Complete", *names, f"--timeout={wait}")
    except KubectlError as error:
        raise KubectlError(
            f"{error}; see `kubectl --namespace {NAMESPACE} logs {names[0]}`"
        ) from error


def _rolled_out(kind: str, name: str, wait: str) -> None:
    _kubectl("rollout", "status", f"{kind}/{name}", f"--timeout={wait}")


def _prune(objects: Sequence[Manifest], say: Say) -> None:
    """Delete what an earlier deploy has left and this one does not have, once all of this one runs."""
    kinds = [
        _resource(kind) for kind in _PRUNED if kind not in _DEFINITIONS or by_kind(objects, kind)
    ]
    found = json.loads(_kubectl("get", ",".join(kinds), f"--selector={_PART}", "--output=json"))
    wanted = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for one in found["items"]:
        kind, name = one["kind"], one["metadata"]["name"]
        if (
            kind in _PRUNED
            and (kind, name) not in wanted
            and not one["metadata"].get("ownerReferences")
        ):
            say(f"deleting {kind} {name}, which is no longer wanted")
            _kubectl("delete", "--ignore-not-found", _resource(kind), name)


def _resource(kind: str) -> str:
    """What kubectl calls a kind; other projects may have one of the same name."""
    return _DEFINITIONS[kind][0] if kind in _DEFINITIONS else kind
