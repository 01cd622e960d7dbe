"""What the jobs run is what the commands take, and lies in volumes that they have."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.contract import COMMANDS
from deploy.manifests.render import Manifest
from deploy.manifests.workloads import Workload, workloads
from tests.unit.deploy.manifests import find, needs_kubectl, rendered
from training import stage2
from training.command import check_batches, load_model
from vlmir.cli.arguments import build_parser

pytestmark = needs_kubectl

WRITTEN = {"out", "pool", "output", "report"}
"""Arguments that name what a command writes."""


def training() -> list[Manifest]:
    return rendered("training")


def _words(objects: list[Manifest]) -> list[str]:
    return shlex.split(find(objects, "RayJob", "vlmir-training")["spec"]["entrypoint"])


def stage2_arguments(words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """As the command reads them."""
    taken = list[argparse.Namespace]()
    assert tuple(words[:3]) == COMMANDS["training"]
    monkeypatch.setattr(sys, "argv", words[2:])
    monkeypatch.setattr(stage2, "run_stage", lambda arguments, name: taken.append(arguments))
    stage2.main()
    return taken[0]


def homeless(arguments: argparse.Namespace, pod: Workload) -> list[str]:
    """Paths of a command that are in no volume of its pod, or would be written where nothing can be."""
    mounts = {
        mount["mountPath"]: mount.get("readOnly", False)
        for mount in pod.spec["containers"][0]["volumeMounts"]
    }
    found = []
    for name, value in vars(arguments).items():
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, Path):
                continue
            place = next((mount for mount in mounts if path.is_relative_to(mount)), None)
            if place is None or (mounts[place] and name in WRITTEN):
                found.append(name)
    return found


def test_the_training_is_one_that_stage_2_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = training()
    arguments = stage2_arguments(_words(objects), monkeypatch)
    assert arguments.resume and arguments.preset == "base"
    # Of each folder its own layout counts: photos, or pairs.
    assert arguments.data == [Path("/data/photos"), Path("/data/pairs")]
    pods = list(workloads([find(objects, "RayJob", "vlmir-training")]))
    assert len(pods) == 2
    for pod in pods:
        assert homeless(arguments, pod) == []
    check_batches(load_model(arguments)[0], "stage2", arguments.workers)
    assert cards(objects) == arguments.workers


def cards(objects: list[Manifest]) -> int:
    """Graphics cards of all pods of the training."""
    pods = workloads([find(objects, "RayJob", "vlmir-training")])
    limits = [(pod.spec["containers"][0]["resources"]["limits"], pod.replicas) for pod in pods]
    return sum(int(one.get("nvidia.com/gpu", 0)) * replicas for one, replicas in limits)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("--workers 4", "--worker-count 4"), ("--preset base", "--preset bose"), ("--data", "--dato")],
)
def test_a_flag_that_stage_2_lacks_is_noticed(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = " ".join(_words(training()))
    assert right in entry
    with pytest.raises(SystemExit):
        stage2_arguments(entry.replace(right, wrong).split(), monkeypatch)


def _read_only_runs(pod: Any) -> None:
    for mount in pod["containers"][0]["volumeMounts"]:
        mount["readOnly"] = True


@pytest.mark.parametrize(
    ("mutate", "found"),
    [
        (lambda pod: pod["containers"][0]["volumeMounts"].pop(0), ["data", "data"]),
        (_read_only_runs, ["out", "pool"]),
    ],
)
def test_a_path_outside_the_volumes_is_noticed(
    mutate: Callable[[Any], Any], found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = training()
    spec = find(objects, "RayJob", "vlmir-training")["spec"]["rayClusterSpec"]
    mutate(spec["headGroupSpec"]["template"]["spec"])
    arguments = stage2_arguments(_words(objects), monkeypatch)
    head = next(workloads([find(objects, "RayJob", "vlmir-training")]))
    assert sorted(homeless(arguments, head)) == found


def test_a_card_too_few_is_noticed() -> None:
    objects = training()
    spec = find(objects, "RayJob", "vlmir-training")["spec"]["rayClusterSpec"]
    spec["workerGroupSpecs"][0]["minReplicas"] = 2
    assert cards(objects) == 3


def test_the_public_weights_are_looked_for_in_the_volume() -> None:
    """The pods reach no hub: only MLflow and one another."""
    objects = training()
    data = find(objects, "ConfigMap", "vlmir-training")["data"]
    (pod, _) = workloads([find(objects, "RayJob", "vlmir-training")])
    mounts = [mount["mountPath"] for mount in pod.spec["containers"][0]["volumeMounts"]]
    assert any(data["HF_HOME"].startswith(f"{mount}/") for mount in mounts)
    assert data["HF_HUB_OFFLINE"] == "1"


def batch() -> list[Manifest]:
    return rendered("cpu")


def restore_arguments(objects: list[Manifest]) -> argparse.Namespace:
    pod = next(workloads([find(objects, "CronJob", "vlmir-batch")]))
    words = pod.spec["containers"][0]["command"]
    assert words[:3] == ["python", "-m", "vlmir"]
    return build_parser().parse_args(words[3:])


def test_the_nightly_batch_is_one_that_restore_takes() -> None:
    objects = batch()
    arguments = restore_arguments(objects)
    pod = next(workloads([find(objects, "CronJob", "vlmir-batch")]))
    assert homeless(arguments, pod) == []
    assert arguments.server == "vlmir-gateway:50050"
    assert arguments.output.is_relative_to("/batch") and arguments.report.is_relative_to("/batch")


@pytest.mark.parametrize(
    ("right", "wrong"), [("--output=/batch/out", "--out-put=x"), ("restore", "restoer")]
)
def test_a_word_that_restore_does_not_take_is_noticed(right: str, wrong: str) -> None:
    objects = batch()
    spec = find(objects, "CronJob", "vlmir-batch")["spec"]["jobTemplate"]["spec"]["template"]
    words = spec["spec"]["containers"][0]["command"]
    words[words.index(right)] = wrong
    with pytest.raises(SystemExit):
        restore_arguments(objects)


def test_the_migration_is_of_the_servers_own_database() -> None:
    objects = batch()
    job = next(workloads([find(objects, "Job", "vlmir-mlflow-migrate")]))
    server = next(workloads([find(objects, "Deployment", "vlmir-mlflow")]))
    name = "MLFLOW_BACKEND_STORE_URI"
    asked, told = (pod.variables(pod.spec["containers"][0], {}) for pod in (job, server))
    assert asked[name] == told[name] and asked[name]
    container, its = job.spec["containers"][0], server.spec["containers"][0]
    assert container["image"] == its["image"]
    # tests/integration/test_migration.py runs it.
    assert container["command"] == ["mlflow", "db", "upgrade", f"$({name})"]
