"""The manifests keep the rules, and each rule finds what breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from deploy.manifests.policy import RULES, check
from deploy.manifests.render import Manifest
from tests.unit.deploy.manifests import SYSTEMS, container, find, needs_kubectl, rendered
from vlmir import __version__

pytestmark = needs_kubectl

Break = Callable[[list[Manifest]], Any]


@pytest.mark.parametrize("environment", SYSTEMS)
def test_a_system_keeps_all_rules(environment: str) -> None:
    assert check(rendered(environment)) == []


def test_a_training_beside_it_keeps_them_too() -> None:
    assert check(rendered("gpu") + rendered("training")) == []


def _pod(all: list[Manifest], name: str, kind: str = "Deployment") -> Any:
    return find(all, kind, name)["spec"]["template"]["spec"]


def _security(all: list[Manifest], name: str = "vlmir-sampler") -> Any:
    return container(all, name)["securityContext"]


def _settings(all: list[Manifest], name: str) -> Any:
    return find(all, "ConfigMap", name)["data"]


def _ray(all: list[Manifest], worker: bool = False) -> Any:
    cluster = find(all, "RayService", "vlmir-restorer")["spec"]["rayClusterConfig"]
    group = cluster["workerGroupSpecs"][0] if worker else cluster["headGroupSpec"]
    return group["template"]["spec"]


def _serve(change: Callable[[Any], Any]) -> Break:
    def mutate(all: list[Manifest]) -> None:
        spec = find(all, "RayService", "vlmir-restorer")["spec"]
        config = yaml.safe_load(spec["serveConfigV2"])
        change(config)
        spec["serveConfigV2"] = yaml.safe_dump(config)

    return mutate


def _without(kind: str, name: str) -> Break:
    return lambda all: all.remove(find(all, kind, name))


def _image(all: list[Manifest], name: str, image: str) -> None:
    container(all, name)["image"] = image


def _route(all: list[Manifest]) -> Any:
    return find(all, "GRPCRoute", "vlmir")["spec"]


def _budget(all: list[Manifest], name: str) -> Any:
    return find(all, "PodDisruptionBudget", name)["spec"]


def _environment(all: list[Manifest], name: str, variable: str) -> Any:
    entries = container(all, name)["env"]
    return next(entry for entry in entries if entry["name"] == variable)


def _egress(all: list[Manifest], name: str) -> Any:
    return find(all, "NetworkPolicy", name)["spec"]["egress"]


def _component(name: str) -> Any:
    return {"podSelector": {"matchLabels": {"app.kubernetes.io/component": name}}}


def _open_postgres_to_the_gateway(all: list[Manifest]) -> None:
    _egress(all, "vlmir-gateway").append({"to": [_component("postgres")]})
    policy = find(all, "NetworkPolicy", "vlmir-postgres")["spec"]
    policy["ingress"].append({"from": [_component("gateway")]})


def _blind_prometheus(all: list[Manifest]) -> None:
    rules = find(all, "NetworkPolicy", "vlmir-sampler")["spec"]["ingress"]
    rules[:] = [rule for rule in rules if "namespaceSelector" not in rule["from"][0]]


def _call_the_embedder_as_sampler(all: list[Manifest]) -> None:
    settings = _settings(all, "vlmir-restorer")
    del settings["VLMIR_EMBEDDER"]
    settings["VLMIR_SAMPLER"] = "vlmir-embedder:50062"


BROKEN: list[tuple[str, Break, str]] = [
    ("hardened", lambda all: _security(all).update(privileged=True), "sampler is privileged"),
    (
        "hardened",
        lambda all: _security(all).pop("readOnlyRootFilesystem"),
        "sampler can write its root",
    ),
    ("hardened", lambda all: _security(all).update(runAsUser=0), "sampler may run as root"),
    (
        "hardened",
        lambda all: _security(all)["capabilities"].update(add=["NET_ADMIN"]),
        "sampler keeps capabilities",
    ),
    (
        "hardened",
        lambda all: _security(all).pop("allowPrivilegeEscalation"),
        "sampler may gain privileges",
    ),
    (
        "hardened",
        lambda all: _pod(all, "vlmir-gateway")["securityContext"].pop("runAsNonRoot"),
        "may run as root",
    ),
    (
        "hardened",
        lambda all: _pod(all, "vlmir-gateway")["securityContext"].pop("seccompProfile"),
        "no seccomp profile",
    ),
    ("hardened", lambda all: _pod(all, "vlmir-gateway").update(hostNetwork=True), "of its host"),
    (
        "hardened",
        lambda all: _pod(all, "vlmir-gateway").pop("automountServiceAccountToken"),
        "mounts a token",
    ),
    (
        "hardened",
        lambda all: _pod(all, "vlmir-minio", "StatefulSet").pop("enableServiceLinks"),
        "of all Services",
    ),
    (
        "hardened",
        lambda all: _ray(all, worker=True)["securityContext"].update(runAsNonRoot=False),
        "may run as root",
    ),
    ("images", lambda all: _image(all, "vlmir-triton", "x/tritonserver"), "has no tag"),
    (
        "images",
        lambda all: _image(all, "vlmir-sampler", "x/sampler:latest"),
        "has no tag that stays",
    ),
    ("images", lambda all: _image(all, "vlmir-sampler", "x/sampler:0.0.9"), "is not sampler:0"),
    (
        "images",
        lambda all: _image(all, "vlmir-triton", "x/tritonserver:24.11-py3"),
        "is not triton",
    ),
    (
        "images",
        lambda all: _image(all, "vlmir-sampler", f"ghcr.io/vlmir/captioner:{__version__}"),
        "is no image of sampler",
    ),
    (
        "images",
        lambda all: _image(all, "vlmir-sampler", "ghcr.io/vlmir/sampler@sha256:abc"),
        "has a digest that is none",
    ),
    (
        "probes",
        lambda all: container(all, "vlmir-mlflow").pop("readinessProbe"),
        "no readinessProbe",
    ),
    ("probes", lambda all: _ray(all)["containers"][0].pop("livenessProbe"), "no livenessProbe"),
    (
        "probes",
        lambda all: container(all, "vlmir-mlflow")["livenessProbe"]["httpGet"].update(port=5001),
        "asks at port 5001",
    ),
    (
        "probes",
        lambda all: container(all, "vlmir-sampler")["livenessProbe"]["exec"]["command"].insert(
            3, "127.0.0.1:50062"
        ),
        "asks at port 50062",
    ),
    (
        "probes",
        lambda all: container(all, "vlmir-sampler").update(
            livenessProbe={"httpGet": {"path": "/metrics", "port": "metrics"}}
        ),
        "livenessProbe: does not ask by gRPC",
    ),
    (
        "probes",
        lambda all: container(all, "vlmir-triton").update(livenessProbe={"periodSeconds": 5}),
        "asks nothing",
    ),
    (
        "resources",
        lambda all: container(all, "vlmir-sampler")["resources"]["limits"].pop("memory"),
        "no memory in its limits",
    ),
    (
        "resources",
        lambda all: container(all, "vlmir-buckets", "Job")["resources"].pop("requests"),
        "no cpu in its requests",
    ),
    (
        "resources",
        lambda all: container(all, "vlmir-sampler")["resources"]["requests"].update(memory="9Gi"),
        "more memory in its requests than in its limits",
    ),
    (
        "volumes",
        lambda all: _pod(all, "vlmir-sampler")["volumes"].pop(),
        "tls is no volume|cache is no|tmp is no",
    ),
    (
        "volumes",
        lambda all: container(all, "vlmir-sampler")["volumeMounts"].pop(),
        "is mounted nowhere",
    ),
    (
        "volumes",
        lambda all: _pod(all, "vlmir-mlflow")["volumes"][0].update(hostPath={"path": "/"}),
        "of a kind that is not allowed",
    ),
    (
        "volumes",
        lambda all: _ray(all)["containers"][0]["volumeMounts"].__delitem__(0),
        "no /tmp to write to",
    ),
    (
        "grace",
        lambda all: _pod(all, "vlmir-sampler").update(terminationGracePeriodSeconds=160),
        "ended after 160 s, but needs 160 s",
    ),
    (
        "grace",
        lambda all: _settings(all, "vlmir-captioner").update(VLMIR_GRACE_S="600"),
        "needs 610 s",
    ),
    ("grace", lambda all: _ray(all).pop("terminationGracePeriodSeconds"), "ended after 30 s"),
    (
        "ports",
        lambda all: container(all, "vlmir-sampler")["ports"][0].update(containerPort=50064),
        "has the ports",
    ),
    (
        "ports",
        lambda all: _settings(all, "vlmir-sampler").update(VLMIR_PORT="50064"),
        "VLMIR_PORT is 50064",
    ),
    (
        "ports",
        lambda all: _settings(all, "vlmir-gateway").pop("VLMIR_METRICS_PORT"),
        "METRICS_PORT is None",
    ),
    (
        "ports",
        lambda all: _settings(all, "vlmir-gateway").pop("VLMIR_HOST"),
        "other pods cannot reach",
    ),
    ("ports", lambda all: _ray(all)["containers"][0]["ports"].pop(2), "has the ports"),
    (
        "services",
        lambda all: find(all, "Service", "vlmir-triton")["spec"]["selector"].update(
            {"app.kubernetes.io/name": "triton"}
        ),
        "selects no pods",
    ),
    (
        "services",
        lambda all: find(all, "Service", "vlmir-mlflow")["spec"]["ports"][0].update(port=80),
        "port 80 is not the port http",
    ),
    (
        "services",
        lambda all: find(all, "Service", "vlmir-sampler")["spec"]["ports"][0].update(
            targetPort="rpc"
        ),
        "is not the port rpc",
    ),
    (
        "services",
        lambda all: find(all, "Service", "vlmir-sampler")["spec"].pop("clusterIP"),
        "whose Service hides them",
    ),
    (
        "commands",
        lambda all: container(all, "vlmir-sampler").update(
            command=["python", "-m", "services.sample"]
        ),
        "services.sample'",
    ),
    (
        "commands",
        lambda all: container(all, "vlmir-triton")["command"].pop(2),
        "--model-control-mode=explicit",
    ),
    (
        "variables",
        lambda all: _settings(all, "vlmir-sampler").update(VLMIR_BATCHPIXELS="1"),
        "nobody reads VLMIR_BATCHPIXELS",
    ),
    (
        "variables",
        lambda all: _settings(all, "vlmir-restorer").update(VLMIR_FOLLOW="x"),
        "nobody reads VLMIR_FOLLOW",
    ),
    (
        "variables",
        lambda all: _environment(all, "vlmir-sampler", "VLMIR_STORE_SECRET_KEY").update(
            value="abc"
        ),
        "in the manifest, not in a Secret",
    ),
    (
        "variables",
        _call_the_embedder_as_sampler,
        "calls embedder, but not by VLMIR_EMBEDDER",
    ),
    (
        "files",
        lambda all: _settings(all, "vlmir-gateway").update(
            VLMIR_TOKEN_FILE="/etc/vlmir/token/tokens"
        ),
        "where nothing is mounted",
    ),
    (
        "files",
        lambda all: _settings(all, "vlmir-sampler").update(VLMIR_CACHE="/cached"),
        "where nothing is mounted",
    ),
    (
        "serve",
        _serve(lambda config: config["grpc_options"].update(port=50052)),
        "grpc_options.port is 50052",
    ),
    (
        "serve",
        _serve(lambda config: config.update(proxy_location="HeadOnly")),
        "proxy_location is HeadOnly",
    ),
    (
        "serve",
        _serve(lambda config: config["applications"][0].update(import_pth="x")),
        "Ray knows no applications.0.import_pth|Ray does not take it",
    ),
    (
        "serve",
        _serve(lambda config: config["grpc_options"].update(prt=1)),
        "Ray knows no grpc_options.prt|Ray does not take it",
    ),
    (
        "serve",
        _serve(lambda config: config["applications"][0]["deployments"][0].update(num_replica=1)),
        "Ray knows no applications.0.deployments.0.num_replica|Ray does not take it",
    ),
    (
        "namespace",
        lambda all: find(all, "Namespace", "vlmir")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "baseline"}
        ),
        "not restricted",
    ),
    (
        "namespace",
        lambda all: find(all, "CronJob", "vlmir-batch")["metadata"].update(namespace="default"),
        "is not in the namespace",
    ),
    (
        "namespace",
        lambda all: all.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}),
        "a secret for everybody",
    ),
    ("network", _without("NetworkPolicy", "vlmir-deny-all"), "none denies all"),
    (
        "network",
        lambda all: _egress(all, "vlmir-embedder").pop(),
        "embedder: calls triton at port 8001|embedder: calls mlflow at port 5000",
    ),
    (
        "network",
        lambda all: _egress(all, "vlmir-gateway")[0]["ports"][0].update(port=50052),
        "gateway: calls restorer at port 50051",
    ),
    ("network", _open_postgres_to_the_gateway, "gateway: may call postgres at port 5432"),
    ("network", _blind_prometheus, "prometheus: cannot reach sampler"),
    ("budgets", _without("PodDisruptionBudget", "vlmir-gateway"), "no disruption budget"),
    (
        "budgets",
        lambda all: _ray(all, worker=True).pop("topologySpreadConstraints"),
        "is not spread",
    ),
    (
        "budgets",
        lambda all: _budget(all, "vlmir-restorer").update(maxUnavailable=1, minAvailable=None),
        "says no number of pods that stay",
    ),
    (
        "budgets",
        lambda all: _budget(all, "vlmir-restorer").update(minAvailable=3),
        "lets none of 3 pods go",
    ),
    (
        "budgets",
        lambda all: _budget(all, "vlmir-gateway").update(maxUnavailable=0),
        "lets none of",
    ),
    (
        "budgets",
        lambda all: _budget(all, "vlmir-minio")["selector"]["matchLabels"].update(x="y"),
        "vlmir-minio: selects no pods",
    ),
    ("scaling", _without("Deployment", "vlmir-sampler"), "a Deployment that is not there"),
    (
        "scaling",
        lambda all: find(all, "Deployment", "vlmir-sampler")["spec"].update(replicas=2),
        "overruled by the Deployment's replicas",
    ),
    (
        "monitors",
        lambda all: find(all, "PodMonitor", "vlmir-minio")["spec"]["podMetricsEndpoints"][0].update(
            port="metrics"
        ),
        "reads a port metrics, which is none",
    ),
    ("monitors", _without("Deployment", "vlmir-triton"), "selects no pods"),
    (
        "references",
        _without("ServiceAccount", "vlmir-seed"),
        "ServiceAccount 'vlmir-seed' is not there",
    ),
    ("references", _without("ConfigMap", "vlmir-sampler"), "ConfigMap 'vlmir-sampler-"),
    (
        "references",
        _without("PersistentVolumeClaim", "vlmir-batch"),
        "PersistentVolumeClaim 'vlmir-batch'",
    ),
    (
        "references",
        _without("Certificate", "vlmir-sampler"),
        "Secret vlmir-sampler-tls is nobody's",
    ),
    (
        "references",
        lambda all: _environment(all, "vlmir-mlflow", "POSTGRES_PASSWORD")["valueFrom"][
            "secretKeyRef"
        ].update(key="pasword"),
        r"Secret vlmir-postgres has no \['pasword'\]",
    ),
    ("routes", _without("Gateway", "vlmir"), "begins at vlmir/grpc, which is no listener"),
    (
        "routes",
        lambda all: _route(all)["parentRefs"][0].update(sectionName="grcp"),
        "begins at vlmir/grcp",
    ),
    (
        "routes",
        lambda all: _route(all).update(hostnames=["other.example.com"]),
        "its listener for vlmir.example.com",
    ),
    (
        "routes",
        lambda all: _route(all)["rules"][0]["backendRefs"][0].update(port=50051),
        "ends at vlmir-gateway:50051, which is no port",
    ),
    (
        "routes",
        lambda all: _route(all)["rules"][0]["backendRefs"][0].update(name="vlmir-gatway"),
        "ends at vlmir-gatway:50050",
    ),
    (
        "routes",
        lambda all: find(all, "Service", "vlmir-gateway")["spec"]["ports"][0].pop("appProtocol"),
        "does not say that it speaks HTTP/2",
    ),
    (
        "routes",
        lambda all: _route(all)["rules"][0]["matches"][0]["method"].update(
            service="vlmir.v1.RestorationService"
        ),
        "RestorationService, which nobody serves",
    ),
    (
        "routes",
        lambda all: find(all, "Certificate", "vlmir-edge")["spec"]["dnsNames"].pop(),
        "store has no certificate for store.vlmir.example.com",
    ),
    (
        "routes",
        lambda all: find(all, "BackendTLSPolicy", "vlmir")["spec"]["validation"].update(
            hostname="gateway"
        ),
        "expects gateway, which no certificate names",
    ),
    (
        "routes",
        lambda all: find(all, "BackendTLSPolicy", "vlmir")["spec"]["targetRefs"][0].update(
            name="gateway"
        ),
        "which is no Service",
    ),
]


@pytest.mark.parametrize(
    ("rule", "mutate", "said"), BROKEN, ids=[f"{r}: {s}" for r, _, s in BROKEN]
)
def test_what_breaks_a_rule_is_found(rule: str, mutate: Break, said: str) -> None:
    objects = rendered("cpu")
    mutate(objects)
    found = check(objects, rule)
    assert found
    text = "\n".join(str(finding) for finding in found)
    assert re.search(said, text), text


def test_images_may_lie_in_your_registry_and_be_fixed_by_digests() -> None:
    objects = rendered("gpu")
    container(objects, "vlmir-sampler")["image"] = f"registry:5000/us/sampler:{__version__}-cuda"
    container(objects, "vlmir-mlflow")["image"] = f"registry.org/us/mlflow@sha256:{64 * 'a'}"
    minio = container(objects, "vlmir-minio", "StatefulSet")
    minio["image"] = f"mirror/{minio['image'].rpartition('/')[2]}@sha256:{64 * 'b'}"
    assert check(objects, "images") == []


def test_a_grpc_probe_asks_at_the_port_of_grpc() -> None:
    objects = rendered("dev")
    container(objects, "vlmir-sampler")["readinessProbe"]["grpc"]["port"] = 9464
    assert [finding.what for finding in check(objects, "probes")] == [
        "sampler readinessProbe: asks at another port than grpc"
    ]


def test_every_rule_has_something_that_breaks_it() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)
