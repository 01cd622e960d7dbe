"""deploy/compose.yaml is what the code needs, and hardened; each broken twin is noticed."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

import vlmir
from deploy.contract import PORTS, SERVICES, _settings
from tests.unit.deploy.composed import (
    BESIDE,
    COMPOSE,
    DEPLOY,
    faults,
    kind,
    networks,
    read,
    substituted,
)

TEXT = COMPOSE.read_text("utf-8")
PUBLIC = (DEPLOY / "compose" / "public.yaml").read_text("utf-8")


@pytest.fixture
def compose() -> dict[str, Any]:
    return copy.deepcopy(read(TEXT))


def test_it_keeps_the_policies(compose: dict[str, Any]) -> None:
    assert faults(compose) == []


def test_the_images_are_this_version(compose: dict[str, Any]) -> None:
    tags = [one["image"].rpartition(":")[2] for one in compose["services"].values()]
    assert tags.count(vlmir.__version__) == 8 and f"{vlmir.__version__}-cuda" in tags


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("read_only: true", "read_only: false", "root can be written"),
        ("cap_drop: [ALL]", "cap_drop: [NET_RAW]", "keeps capabilities"),
        ("cap_add: [CHOWN]", "cap_add: [CHOWN, SYS_ADMIN]", "gets capabilities"),
        ('user: "999:999"', 'user: "0:0"', "postgres: it is root"),
        ('user: "999:999"', "", "its user is the image's"),
        ('user: "999:999"', 'user: "999:999"\n    privileged: true', "privileged is not known"),
        ("stop_signal:", "stop_signl:", "stop_signl is not known"),
        (":v3.5.0", ":latest", "the image is"),
        ("sampler:${VLMIR_VERSION:-0.1.0}\n", "captioner:${VLMIR_VERSION:-0.1.0}\n", "the image"),
        ("network_mode: none", "network_mode: host", "no network of its own"),
        ("VLMIR_EMBEDDER: embedder:50062", "VLMIR_EMBEDDER: embedder:50061", "VLMIR_EMBEDDER is"),
        ("VLMIR_EMBEDDER: embedder", "VLMIR_EMBEDER: embedder", "VLMIR_EMBEDER is read by nobody"),
        ("VLMIR_TRITON: triton:8001", "VLMIR_TRITON: triton:8000", "VLMIR_TRITON is"),
        ('VLMIR_PORT: "50063"', 'VLMIR_PORT: "50061"', "it listens at"),
        ('VLMIR_PORT: "50063"', "VLMIR_PORT: 50063", "is no text"),
        ("//mlflow@postgres", "//mlflow:hush@postgres", "has a password"),
        ("postgresql+psycopg2:", "postgresql:", "the driver that is installed"),
        ("buckets: {condition: service_completed_successfully}", "", "buckets: nobody waits"),
        ("KEY_FILE: /run/secrets/seed-secret", "KEY: hush", "a secret in"),
        ("secrets: [seed-secret]", "secrets: [ray-token]", "is not given to it"),
        ("secrets: [seed-secret]", "secrets: [seed-secrets]", "seed-secrets is not declared"),
        ("command: [services.launcher.prepare]", "command: [training.promote]", "the command is"),
        ("--model-control-mode=explicit", "--model-control-mode=poll", "the command is"),
        ('volumes: ["sampler:/cache"]', "volumes: []", "is no volume"),
        ("./k8s/base/buckets.sh:", "./k8s/base/bucket.sh:", "is missing"),
        ("rules/vlmir.yml:ro", "rules/vlmir.yml", "can be written"),
        ("prometheus:/prometheus", "/srv:/prometheus", "is the machine's"),
        ("127.0.0.1:9001:9001", "9001:9001", "open to all|unpack"),
        ("127.0.0.1:9001:9001", "0.0.0.0:9001:9001", "is open to all"),
        ("127.0.0.1:9001:9001", "127.0.0.1:9000:9000", "is published"),
        ("networks: [public, front]", "networks: [public, front, store]", "share a network"),
        ("networks: [public, front]", "networks: [public]", "cannot reach restorer"),
        ("networks: [database]", "networks: [database, registry]", "share a network"),
        ("networks: [dashboards, grafana-page]", "networks: [dashboards, public]", "a way out"),
        ("aliases: [sampler]", "aliases: [sampel]", "it is called"),
        ("memory: 64m, ", "", "have no limit"),
        ("stop_grace_period: 180s", "stop_grace_period: 60s", "killed after 60 s"),
        ('VLMIR_GRACE_S: "120"', 'VLMIR_GRACE_S: "30"', "cut off sooner"),
        ("minio-owner: {condition: service_completed", "owner: {condition: service_completed", "which is not"),
        ("mlflow: {condition: service_healthy}", "mlflow: {condition: service_completed_successfully}", "in vain"),
        ("triton-gpu: {condition: service_healthy, required: false", "triton-gpu: {condition: service_healthy", "be"),
        ("127.0.0.1:9090/-/ready", "127.0.0.1:9091/-/ready", "asks port 9091"),
        ("profiles: [monitoring]", "profiles: [cpu]", "its profiles are"),
        ("size=64m,mode", "mode", "has no size"),
    ],
)  # fmt: skip
def test_a_broken_one_is_noticed(old: str, new: str, fault: str) -> None:
    assert old in TEXT
    try:
        found = faults(read(TEXT.replace(old, new)))
    except ValueError as error:
        found = [str(error)]
    assert any(re.search(fault, each) for each in found), found


def read_settings(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Read each service's settings as in its container; the kinds of those that have any."""
    seen = set[str]()
    for name, service in compose["services"].items():
        with monkeypatch.context() as one:
            for variable in [each for each in os.environ if each.startswith("VLMIR_")]:
                one.delenv(variable)
            for variable, value in service.get("environment", {}).items():
                one.setenv(variable, value)
            read_them = [settings() for settings in _settings(kind(name))]
        seen |= {kind(name)} if read_them else set()
    return seen


def test_the_services_take_their_settings(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_settings(compose, monkeypatch) == {*SERVICES, "models", "seed"}


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("sampler", "VLMIR_GRACE_S", "2m"),
        ("captioner", "VLMIR_FOLLOW", "models:/vlmir-sampler"),
        ("embedder", "VLMIR_BACKEND", "trition"),
        ("restorer", "VLMIR_STORE_URL", "http://minio:9000/vlmir"),
        ("gateway", "VLMIR_LOG_FORMAT", "logfmt"),
    ],
)
def test_a_wrong_value_is_refused(
    compose: dict[str, Any],
    name: str,
    variable: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compose["services"][name]["environment"][variable] = value
    with pytest.raises(ValidationError):
        read_settings(compose, monkeypatch)


def schema() -> Any:
    """The compose specification's own schema, which the package check-jsonschema carries."""
    found = importlib.util.find_spec("check_jsonschema")
    if found is None or found.origin is None:
        pytest.skip("check-jsonschema, which has compose's schema, is not installed")
    file = Path(found.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    return json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("text", [TEXT, PUBLIC])
def test_it_fits_the_compose_specification(text: str) -> None:
    read_as = read(text, VLMIR_SERVER="x", VLMIR_STORE_PUBLIC_URL="https://x")
    jsonschema.validate(read_as, schema())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stop_grace_period:", "stop_grace_periods:"),
        ("condition: service_healthy", "condition: healthy"),
        ("init: true", "init: [true]"),
        ("capabilities: [gpu]", "capability: [gpu]"),
    ],
)
def test_what_does_not_fit_the_specification_is_noticed(old: str, new: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read(TEXT.replace(old, new)), schema())


def test_variables_are_read_as_compose_reads_them() -> None:
    assert substituted("a${B:-c}$$d${E:+,}${E:-}", {"E": "f"}) == "ac$d,f"
    assert substituted("${E:+,}${E:-}", {}) == ""
    with pytest.raises(ValueError, match="name it"):
        substituted("${X:?name it}", {})


def test_no_pair_is_excused_that_needs_no_excuse(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for one, other in BESIDE:
        assert networks(services[one]) & networks(services[other]), (one, other)


def test_who_is_outside_reaches_the_gateway_alone(compose: dict[str, Any]) -> None:
    """All other ports are the pages of this machine's user, and no way from them leads by the gateway."""
    open_to_all = [
        name
        for name, service in read(TEXT, VLMIR_BIND="0.0.0.0")["services"].items()
        if any(not port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    ]
    assert open_to_all == ["gateway"]
    assert networks(compose["services"]["gateway"]) == {"public", "front"}


def test_the_secrets_are_made_by_the_script(compose: dict[str, Any], tmp_path: Path) -> None:
    script = DEPLOY / "compose" / "make-secrets"
    folder = tmp_path / "secrets"
    subprocess.run([script, folder], check=True, capture_output=True)
    made = {file.name: file.read_text() for file in folder.iterdir()}
    assert set(made) == set(compose["secrets"])
    for name, secret in compose["secrets"].items():
        assert secret == {"file": f"../runs/compose/secrets/{name}"}
        # The containers' users are others than who runs the script: the folder guards the files.
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o444
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    values = [text for name, text in made.items() if re.search("password|secret|token", name)]
    assert len(set(values)) == len(values) == 8 and all(len(text) == 48 for text in values)
    triton = json.loads(made["triton-s3"])["s3"][""]
    assert (triton["key_id"], triton["secret_key"]) == ("triton", made["triton-secret"])
    assert f"aws_secret_access_key = {made['mlflow-secret']}\n" in made["mlflow-s3"]
    subprocess.run([script, folder], check=True, capture_output=True)
    assert {file.name: file.read_text() for file in folder.iterdir()} == made


def test_the_accounts_are_those_that_are_made(compose: dict[str, Any]) -> None:
    services = compose["services"]
    accounts = services["buckets"]["environment"]
    accounted = {
        "restorer": "SERVICES",
        "sampler": "SERVICES",
        "seed": "WRITER",
        "models": "WRITER",
    }
    for client, account in accounted.items():
        key = services[client]["environment"]["VLMIR_STORE_ACCESS_KEY"]
        assert key == accounts[f"{account}_KEY"], client
    assert (accounts["MLFLOW_KEY"], accounts["READER_KEY"]) == ("mlflow", "triton")
    script = (DEPLOY / "k8s" / "base" / "buckets.sh").read_text("utf-8")
    needed = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", script))
    exported = set(re.findall(r"\b([A-Z_]+)=", services["buckets"]["entrypoint"][-1]))
    assert needed - set(accounts) == exported
    for policy in re.findall(r"^account (\w+)", script, re.M):
        assert any(
            mount.endswith(f":/buckets/{policy}.json:ro")
            for mount in services["buckets"]["volumes"]
        )


def test_mlflow_answers_to_the_name_it_is_called_by() -> None:
    def hosts(**given: str) -> list[str]:
        mlflow = read(TEXT, **given)["services"]["mlflow"]
        return str(mlflow["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]).split(",")

    port = PORTS["mlflow"]["http"]
    assert hosts() == [f"mlflow:{port}", f"localhost:{port}", f"127.0.0.1:{port}"]
    assert hosts(MLFLOW_MORE_HOSTS="registry.example.org")[-1] == "registry.example.org"


def test_mounts_of_monitoring_fit_its_files(compose: dict[str, Any]) -> None:
    prometheus = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text("utf-8"))
    mounts = compose["services"]["prometheus"]["volumes"]
    for rules in prometheus["rule_files"]:
        assert any(f":/etc/prometheus/{rules}" in mount for mount in mounts)
    for job in prometheus["scrape_configs"]:
        for discovered in job.get("dns_sd_configs", ()):
            (name,) = discovered["names"]
            ports = {**PORTS[name], **(PORTS["ray"] if name == "restorer" else {})}
            assert discovered["port"] in {ports.get("metrics"), ports.get("s3")}
            assert name in compose["services"]
    folder = DEPLOY / "monitoring" / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text("utf-8"))
    assert source["datasources"][0]["url"] == f"http://prometheus:{PORTS['prometheus']['http']}"
    provider = yaml.safe_load((folder / "dashboards" / "vlmir.yml").read_text("utf-8"))
    path = provider["providers"][0]["options"]["path"]
    assert any(f":{path}:ro" in mount for mount in compose["services"]["grafana"]["volumes"])


def test_the_public_one_adds_tls_tokens_and_links_and_nothing_else(compose: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="VLMIR_SERVER"):
        read(PUBLIC)
    public = read(PUBLIC, VLMIR_SERVER="x.org", VLMIR_STORE_PUBLIC_URL="https://s.org")
    assert set(public["services"]) == {"gateway", "restorer", "minio"}
    gateway = public["services"]["gateway"]
    assert gateway["healthcheck"]["test"][4] == f"127.0.0.1:{PORTS['gateway']['grpc']}"
    assert set(gateway["secrets"]) == set(public["secrets"])
    for value in gateway["environment"].values():
        assert value.removeprefix("/run/secrets/") in public["secrets"]
    assert public["services"]["minio"]["ports"] == ["127.0.0.1:9000:9000"]
    merged = copy.deepcopy(compose)
    for name, added in public["services"].items():
        merged["services"][name]["environment"].update(added.get("environment", {}))
        merged["services"][name].setdefault("secrets", []).extend(added.get("secrets", ()))
    merged["secrets"] |= public["secrets"]
    assert faults(merged) == []
