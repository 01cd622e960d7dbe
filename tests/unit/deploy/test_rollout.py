"""Deploying, with a kubectl that only writes down what it is asked: what is refused, the order, what is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.manifests.__main__ import main
from deploy.manifests.kubectl import KubectlError
from deploy.manifests.render import Manifest
from deploy.manifests.rollout import deploy, undeploy
from deploy.manifests.secrets import SECRETS, make_secrets, needed
from deploy.manifests.smoke import smoke
from services.gateway.tokens import digest
from tests.unit.deploy.fake_cluster import Cluster, steps
from tests.unit.deploy.manifests import container, find, needs_kubectl, rendered
from vlmir.errors import OptionError, UnavailableError

pytestmark = needs_kubectl


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    rendered("dev"), rendered("cpu")  # by the real one
    return Cluster(tmp_path, monkeypatch)


def quietly(_: str) -> None:
    pass


def own_names(objects: list[Manifest]) -> list[Manifest]:
    data = find(objects, "ConfigMap", "vlmir-edge")["data"]
    for key in data:
        data[key] = f"my-{key.lower()}.org"
    return objects


def test_the_parts_come_in_the_order_in_which_they_need_one_another(cluster: Cluster) -> None:
    deploy(rendered("dev"), say=quietly)
    order = list(steps(cluster))
    path = [
        "Namespace vlmir",
        "NetworkPolicy vlmir-deny-all",
        "StatefulSet vlmir-minio",
        "rollout status statefulset/vlmir-minio",
        "delete job/vlmir-buckets job/vlmir-mlflow-migrate",
        "Job vlmir-buckets",
        "wait job/vlmir-buckets job/vlmir-mlflow-migrate",
        "Deployment vlmir-mlflow",
        "rollout status deployment/vlmir-mlflow",
        "delete job/vlmir-seed",
        "Job vlmir-seed",
        "wait job/vlmir-seed",
        "Deployment vlmir-triton",
        "rollout status deployment/vlmir-sampler",
        "RayService vlmir-restorer",
        "wait rayservice/vlmir-restorer",
        "Deployment vlmir-gateway",
        "rollout status deployment/vlmir-gateway",
    ]
    assert [step for step in order if step in path] == path
    objects = {f"{one['kind']} {one['metadata']['name']}" for one in rendered("dev")}
    assert objects == {step for step in order if step[0].isupper()}
    applied = [command for command, _ in cluster.calls if command.startswith("apply")]
    assert all("--server-side" in one and "--force" not in one for one in applied)


def test_what_is_no_longer_wanted_goes_last_and_data_never(cluster: Cluster) -> None:
    kept = {"kind": "Deployment", "metadata": {"name": "vlmir-gateway"}}
    items = [
        {"kind": "ConfigMap", "metadata": {"name": "vlmir-gateway-old"}},
        {"kind": "Service", "metadata": {"name": "vlmir-x", "ownerReferences": [{"name": "ray"}]}},
        kept,
    ]
    cluster.has("--selector", json.dumps({"items": items}))
    deploy(rendered("dev"), say=quietly)
    *_, asked, deleted = cluster.calls
    assert deleted[0] == "delete --ignore-not-found ConfigMap vlmir-gateway-old"
    kinds = asked[0].split()[1].split(",")
    assert "Deployment" in kinds and "rayservices.ray.io" in kinds
    assert not {"Secret", "PersistentVolumeClaim", "StatefulSet", "Namespace", "Job"} & set(kinds)
    # The cluster has no such definition, so asking would be an error.
    assert not any("certificates" in kind or "podmonitors" in kind for kind in kinds)


def test_the_authority_is_shown_to_the_gateway_api_without_its_key(cluster: Cluster) -> None:
    deploy(own_names(rendered("cpu")), say=quietly)
    assert "wait certificates.cert-manager.io/vlmir-ca" in list(steps(cluster))
    given = [one for _, objects in cluster.calls for one in objects]
    authority = next(
        one for one in given if one["metadata"]["name"] == "vlmir-ca" and one["kind"] == "ConfigMap"
    )
    assert authority["data"] == {"ca.crt": "the authority"}


def test_faults_are_refused_before_anything_is_asked(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = rendered("dev")
    container(broken, "vlmir-sampler")["image"] = "ghcr.io/vlmir/sampler:latest"
    monkeypatch.setattr("deploy.manifests.__main__.render", lambda _: broken)
    assert main(["deploy", "dev"]) == 1
    assert "vlmir-sampler: ghcr.io/vlmir/sampler:latest has no tag" in capsys.readouterr().err
    assert cluster.calls == []


def test_the_names_of_the_example_are_refused(cluster: Cluster) -> None:
    with pytest.raises(
        OptionError, match=r"is still the example, .*; put your own into edge\.yaml"
    ):
        deploy(rendered("cpu"), say=quietly)
    assert cluster.calls == []


def test_a_training_is_no_deploy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "training"]) == 1
    assert "kubectl apply" in capsys.readouterr().err


def test_a_cluster_without_kuberay_is_told(cluster: Cluster) -> None:
    cluster.has("get customresourcedefinitions", "crd/certificates.cert-manager.io")
    with pytest.raises(UnavailableError, match="knows no RayService; install KubeRay"):
        deploy(rendered("dev"), say=quietly)
    assert len(cluster.calls) == 1


def test_missing_secrets_are_told_before_anything_but_the_namespace_is_made(
    cluster: Cluster,
) -> None:
    cluster.has("get secrets", "secret/vlmir-postgres")
    with pytest.raises(
        UnavailableError, match=r"lacks the Secrets vlmir-minio-root, .*make secrets"
    ):
        deploy(rendered("dev"), say=quietly)
    assert list(steps(cluster)) == ["Namespace vlmir"]


def test_an_absent_cluster_is_told_in_a_sentence(cluster: Cluster) -> None:
    cluster.has(
        "get customresourcedefinitions",
        fails="The connection to the server localhost:8080 was refused - did you specify the right host or port?",
    )
    with pytest.raises(UnavailableError, match="No cluster answers; choose one with"):
        deploy(rendered("dev"), say=quietly)


def test_a_job_that_fails_ends_it(cluster: Cluster) -> None:
    cluster.has("wait --for=condition=Complete job/vlmir-seed", fails="timed out waiting")
    with pytest.raises(KubectlError, match=r"timed out waiting; see .*logs job/vlmir-seed"):
        deploy(rendered("dev"), say=quietly)
    assert "Deployment vlmir-gateway" not in list(steps(cluster))


def test_undeploying_leaves_data_and_secrets(cluster: Cluster) -> None:
    undeploy(rendered("cpu"), say=quietly)
    ((command, objects),) = cluster.calls
    assert command.startswith("delete --ignore-not-found")
    kinds = {one["kind"] for one in objects}
    assert {"StatefulSet", "Deployment", "RayService"} <= kinds
    assert not kinds & {"PersistentVolumeClaim", "Namespace", "Secret"}
    sets = [one for one in objects if one["kind"] == "StatefulSet"]
    kept = {one["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] for one in sets}
    assert kept == {"Retain"}
    undeploy(rendered("cpu"), with_data=True, say=quietly)
    assert cluster.calls[-1][0].startswith("delete persistentvolumeclaim --selector=")


def test_secrets_are_random_and_fit_together(cluster: Cluster) -> None:
    cluster.has("get secrets", "secret/vlmir-postgres")
    said = make_secrets(rendered("cpu"))
    made = {objects[0]["metadata"]["name"]: objects[0] for _, objects in cluster.calls if objects}
    assert set(made) == set(SECRETS) - {"vlmir-postgres"}
    for name, secret in made.items():
        assert set(secret["stringData"]) == set(SECRETS[name])
    batch = made["vlmir-batch"]["stringData"]["token"]
    tokens = made["vlmir-gateway-tokens"]["stringData"]["tokens"]
    first = next(line for line in said if "first" in line).rpartition(" ")[2]
    assert tokens == f"first:{digest(first)}\nbatch:{digest(batch)}\n"
    values = [value for one in made.values() for value in one["stringData"].values()]
    assert len(values) == len(set(values))
    # Where everybody on the machine could see them.
    assert not any(
        value in command for command, _ in cluster.calls for value in values if len(value) > 30
    )


def test_secrets_that_are_there_stay(cluster: Cluster) -> None:
    assert make_secrets(rendered("cpu")) == ["all Secrets are there"]
    cluster.has(
        "get secrets", "\n".join(f"secret/{name}" for name in set(SECRETS) - {"vlmir-batch"})
    )
    with pytest.raises(OptionError, match="by hand"):
        make_secrets(rendered("cpu"))
    assert not any(command.startswith("create") for command, _ in cluster.calls)


def test_who_sends_no_tokens_needs_none() -> None:
    assert set(SECRETS) - set(needed(rendered("dev"))) == {"vlmir-gateway-tokens", "vlmir-batch"}


def test_a_gateway_that_is_not_there_is_told(cluster: Cluster) -> None:
    cluster.has("port-forward", fails='services "vlmir-gateway" not found')
    with pytest.raises(KubectlError, match='cannot be reached: services "vlmir-gateway" not found'):
        smoke(rendered("dev"))


def test_a_token_that_nobody_gave_is_asked_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLMIR_TOKEN", raising=False)
    cluster.has("get secret vlmir-batch", fails="not found")
    with pytest.raises(OptionError, match="Set VLMIR_TOKEN"):
        smoke(rendered("cpu"))
