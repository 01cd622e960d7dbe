"""Dockerfiles, what they copy and install, and the bake file, held to their policies."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vlmir
from deploy.contract import SERVICES
from deploy.images import REQUIREMENTS, closure, requirements, size
from tests.unit.deploy.baked import WITH_CUDA, bake_faults, base_faults
from tests.unit.deploy.dockerfiles import DOCKER, NAMES, ROOT, faults, instructions
from tests.unit.deploy.hcl import parse

BASE = (DOCKER / "base.Dockerfile").read_text("utf-8")
BAKE = (DOCKER / "docker-bake.hcl").read_text("utf-8")


def dockerfile(name: str) -> str:
    return (DOCKER / f"{name}.Dockerfile").read_text("utf-8")


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def test_every_service_has_an_image() -> None:
    assert set(NAMES) == {*SERVICES, "training", "mlflow"}


@pytest.mark.parametrize("name", NAMES)
def test_a_dockerfile_keeps_the_policies(name: str) -> None:
    assert faults(name, dockerfile(name)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("# syntax=docker/dockerfile:1.18", "# syntax=docker/dockerfile:latest", "syntax"),
        ("FROM ${RUNTIME}", "FROM python:latest", "moves"),
        ("FROM ${RUNTIME}", "FROM python", "has no tag"),
        ("FROM ${RUNTIME}", "FROM ${BUILDER}", "made from"),
        ("USER 10001:10001", "USER root", "the user"),
        ("USER 10001:10001", "USER 0:0", "the user"),
        ("USER 10001:10001", "", "the user"),
        ("USER 10001:10001", "RUN apt-get install gcc\nUSER 10001:10001", "gcc in the last"),
        ("COPY --from=build /app /app", "COPY services /app/services", "copies from elsewhere"),
        ("COPY vlmir /app/vlmir", "ADD vlmir /app/vlmir", "ADD"),
        ("COPY vlmir /app/vlmir", "RUN pip install torch", "without constraints"),
        ("EXPOSE 50063 9464", "EXPOSE 50062 9464", "the ports"),
        ("VLMIR_PORT=50063", "VLMIR_PORT=50061", "VLMIR_PORT is 50061"),
        ("VLMIR_CACHE", "VLMIR_CASHE", "read by nobody"),
        ("VLMIR_HOST=0.0.0.0", "VLMIR_HOST=127.0.0.1", "VLMIR_HOST is"),
        ('VOLUME ["/cache"]', "", "no volume"),
        ("127.0.0.1:50063", "127.0.0.1:50061", "health check"),
        ("HEALTHCHECK", "# HEALTHCHECK", "health check"),
        ("services.sampler", "services.sampel", "the command"),
        ("VLMIR_HOST=0.0.0.0", "VLMIR_STORE_SECRET_KEY=x", "a secret"),
    ],
)
def test_a_broken_dockerfile_is_noticed(old: str, new: str, fault: str) -> None:
    text = dockerfile("sampler")
    assert old in text
    assert any(fault in found for found in faults("sampler", text.replace(old, new)))


def test_the_base_can_be_fixed_by_its_digest_and_has_no_tools() -> None:
    assert list(base_faults(BASE)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("slim-bookworm", "bookworm", "the image is"),
        ("ARG PYTHON_DIGEST=\n", "", "the digest is no argument"),
        ("${PYTHON_IMAGE}${PYTHON_DIGEST} AS runtime", "python:3.11 AS runtime", "made from"),
        ("pip uninstall --yes pip setuptools wheel", "pip list", "can install packages"),
        ("--without-pip /venv", "/venv", "from the builder can install"),
        ("USER 10001:10001", "USER root", "the user is 'root'"),
    ],
)
def test_a_broken_base_is_noticed(old: str, new: str, fault: str) -> None:
    assert old in BASE
    (found,) = base_faults(BASE.replace(old, new))
    assert fault in found


def test_packages_come_by_the_constraints_alone() -> None:
    script = (DOCKER / "install.sh").read_text("utf-8")
    (line,) = re.findall(r"^pip .* install .*", script, re.M)
    assert "--constraint=constraints.txt" in line
    for name in NAMES:
        variant = '"$VARIANT"' if name in WITH_CUDA else "cpu"
        assert f"install-requirements {variant} {name}\n" in dockerfile(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_package_is_pinned(name: str, variant: str) -> None:
    pins = constraints()
    for each in requirements(name, variant):
        own = [one.operator for one in each.specifier]
        assert canonicalize_name(each.name) in pins or own == ["=="], each


def test_a_package_without_a_pin_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("numpy\nleft-pad # not ours\n")
    names = [each.name for each in requirements("x", folder=tmp_path)]
    assert names == ["numpy", "left-pad"] and "left-pad" not in constraints()


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_one_onnx_runtime_in_an_image(variant: str) -> None:
    wanted = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu"}[variant]
    for name in ("embedder", "training"):
        found = {each.name for each in requirements(name, variant)}
        assert found & {"onnxruntime", "onnxruntime-gpu"} == {wanted}


def test_the_training_image_has_the_projects_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["serve"], *extras["cluster"], *extras["train"]]
    wanted = {(each.name, *each.extras) for each in map(Requirement, texts) if each.name != "vlmir"}
    listed = [
        Requirement(line)
        for line in (REQUIREMENTS / "training.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert {(each.name, *each.extras) for each in listed} == wanted


def test_what_an_image_holds_is_measured() -> None:
    gateway, sampler = (closure(requirements(name)) for name in ("gateway", "sampler"))
    assert {"grpcio", "pydantic-core"} <= set(gateway) < set(sampler)
    assert not {"torch", "pillow", "mlflow-skinny"} & set(gateway)
    assert {"torch", "minio", "mlflow-skinny"} <= set(sampler)
    torch = sampler["torch"]
    assert torch is not None and size(torch) > 2e8
    assert size(torch, without="cuda") <= size(torch)
    assert closure([Requirement("no-such-package")]) == {"no-such-package": None}


def allowed(path: str, ignore: str) -> bool:
    """Whether .dockerignore, which forbids all but a list, lets a path through."""
    rules = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    return any(
        rule.startswith("!") and (path == rule[1:] or Path(path).match(rule[1:])) for rule in rules
    )


def test_what_is_copied_reaches_the_builder_and_no_more() -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8")
    sources = set()
    for name in ("base", *NAMES):
        for each in instructions(dockerfile(name)):
            if each.word == "COPY" and "--from" not in each.rest:
                words = [word for word in each.rest.split() if not word.startswith("--")]
                sources |= set(words[:-1])
    assert {"constraints.txt", "vlmir", "services", "training"} <= sources
    for source in sources:
        assert (ROOT / source).exists() and allowed(source, ignore), source
    for kept_out in (".git", "runs", ".venv", "tests", "deploy/compose.yaml", "out"):
        assert not allowed(kept_out, ignore)
    assert not allowed("services", ignore.replace("!services\n", ""))


def test_the_bake_file_makes_every_image() -> None:
    assert list(bake_faults(parse(BAKE))) == []
    for name in NAMES:
        assert ("ARG VARIANT" in dockerfile(name)) == (name in WITH_CUDA)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"type=provenance,mode=max", "type=sbom"', '"type=provenance,mode=max"', "without SBOM"),
        ('"type=provenance,mode=max", "type=sbom"', '"type=sbom"', "without SBOM or provenance"),
        ('    PYTHON_DIGEST = "${PYTHON_DIGEST}"\n', "", "by its digest"),
        ("3.11.14-slim-bookworm", "3.12-slim-bookworm", "another than the Dockerfile's"),
        ('"gateway", "restorer", ', '"gateway", ', "cpu makes"),
        ('["cpu"]', '["gpu"]', "by default"),
        (f'"{vlmir.__version__}"', '"0.0.9"', "the version is 0.0.9"),
        ('VARIANT = "cuda"', 'VARIANT = "cpu"', "args is"),
        ("/sampler:${VERSION}-cuda", "/sampler:${VERSION}", "sampler-cuda: tags is"),
        ("docker/mlflow.Dockerfile", "docker/gateway.Dockerfile", "mlflow: dockerfile is"),
        ('runtime = "target:runtime"', 'runtime = "python"', "not made from the base"),
    ],
)
def test_a_bake_file_with_a_fault_is_noticed(old: str, new: str, fault: str) -> None:
    assert old in BAKE
    found = list(bake_faults(parse(BAKE.replace(old, new))))
    assert any(fault in each for each in found), found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('target "builder" {', 'target "builder {'),
        ('target "mlflow" {', 'target "gateway" {'),
        ("  context   =", "  context   :"),
        ('targets = ["cpu"]', "targets = [cpu]"),
        ('default = "ghcr.io/vlmir"', 'default = "a"\n  default = "b"'),
    ],
)
def test_a_broken_bake_file_is_noticed(old: str, new: str) -> None:
    assert old in BAKE
    with pytest.raises((ValueError, IndexError)):
        parse(BAKE.replace(old, new))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    files = sorted(str(file) for file in DOCKER.glob("*.Dockerfile"))
    done = subprocess.run(["hadolint", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    broken = tmp_path / "Dockerfile"
    broken.write_text("FROM python:latest\nRUN cd /x && apt-get install gcc\n")
    assert subprocess.run(["hadolint", broken], capture_output=True).returncode == 1


@pytest.mark.parametrize("script", ["install.sh", "with-secrets.sh"])
def test_the_scripts_are_shells(script: str) -> None:
    assert subprocess.run(["sh", "-n", DOCKER / script]).returncode == 0


def test_a_secret_becomes_the_variable_of_libpq(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    script = ["sh", DOCKER / "with-secrets.sh", "sh", "-c", 'echo "${PGPASSWORD:-none}"']
    told = subprocess.run(
        script, env={"PATH": "/usr/bin:/bin", "PGPASSWORD_FILE": str(secret)}, capture_output=True
    )
    assert told.stdout == b"hush\n"
    assert subprocess.run(script, env={"PATH": "/usr/bin:/bin"}, capture_output=True).stdout == (
        b"none\n"
    )


def test_an_unknown_variant_is_refused() -> None:
    done = subprocess.run(
        ["sh", DOCKER / "install.sh", "gpu", "sampler"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "choose cpu or cuda" in done.stderr
