"""The deployment's contract says what the code has."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic_settings import BaseSettings

from deploy.contract import ADDRESSES, COMMANDS, EDGES, IMAGES, PORTS, SERVICES, environment
from services.captioner.server import CaptionerSettings
from services.common.settings import ServerSettings
from services.common.store import StoreSettings
from services.embedder.settings import EmbedderSettings
from services.gateway.server import GatewaySettings
from services.restorer.settings import ClusterSettings
from services.sampler.settings import SamplerSettings

ROOT = Path(__file__).resolve().parents[3]
SERVE = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text("utf-8"))
PROCFILE = (ROOT / "deploy" / "Procfile").read_text("utf-8")
SETTINGS: dict[str, type[ServerSettings]] = {
    "captioner": CaptionerSettings,
    "embedder": EmbedderSettings,
    "sampler": SamplerSettings,
    "gateway": GatewaySettings,
}
# What a module imports from `services` shows what a service reads from the environment beside its own settings.
READS_STORE = "services.common.store"
READS_REGISTRY = "services.common.weights"


def modules_of(command: tuple[str, ...]) -> Iterator[str]:
    if command[:2] == ("python", "-m"):
        yield command[2]


def sources(service: str) -> str:
    """All that a service's package says, but for what runs in another process than the cluster's."""
    files = (ROOT / "services" / service).glob("*.py")
    return "\n".join(
        file.read_text("utf-8") for file in files if file.name not in ("embedded.py", "demo.py")
    )


def imported(source: str) -> set[str]:
    return {
        node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module
    }


@pytest.mark.parametrize("service", sorted(SETTINGS))
def test_every_setting_of_a_server_is_a_variable(service: str) -> None:
    fields = {f"VLMIR_{name.upper()}" for name in SETTINGS[service].model_fields}
    assert fields <= environment(service)
    assert {"VLMIR_PORT", "VLMIR_HOST", "VLMIR_METRICS_PORT"} <= fields


@pytest.mark.parametrize("service", sorted(SETTINGS))
def test_a_server_takes_port_and_host_from_the_variables(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "VLMIR_HOST": "0.0.0.0",
        "VLMIR_PORT": PORTS[service]["grpc"],
        "VLMIR_METRICS_PORT": PORTS[service]["metrics"],
        "VLMIR_UPSTREAM": "restorer:1",
    }.items():
        monkeypatch.setenv(name, str(value))
    settings = SETTINGS[service].model_validate({})
    assert (settings.host, settings.port, settings.metrics_port) == (
        "0.0.0.0",
        PORTS[service]["grpc"],
        PORTS[service]["metrics"],
    )


def test_misspelt_variables_are_not_in_the_contract() -> None:
    for service in SERVICES:
        known = environment(service)
        assert not {"VLMIR_POTR", "VLMIR_UPSTREAMS", "VLMIR_STORE", "OMP_NUM_THREAD"} & known
    assert "VLMIR_STORE_URL" not in environment("captioner")
    assert "VLMIR_FOLLOW" not in environment("gateway")


def test_an_unknown_service_is_an_error() -> None:
    with pytest.raises(KeyError):
        environment("sampel")


def test_the_restorer_is_found_where_the_others_look_by_default() -> None:
    defaults = {name: field.default for name, field in ClusterSettings.model_fields.items()}
    for service in ("captioner", "embedder", "sampler"):
        assert defaults[service] == f"127.0.0.1:{PORTS[service]['grpc']}"
    assert GatewaySettings.model_fields["port"].default == PORTS["gateway"]["grpc"]


def test_ray_serve_opens_the_restorers_ports() -> None:
    assert SERVE["grpc_options"]["port"] == PORTS["restorer"]["grpc"]
    assert SERVE["http_options"]["port"] == PORTS["restorer"]["http"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_commands_module_exists(name: str) -> None:
    for module in modules_of(COMMANDS[name]):
        found = importlib.util.find_spec(module)
        assert found is not None and found.origin is not None, module
        source = Path(found.origin)
        if source.name == "__init__.py":
            source = source.with_name("__main__.py")
        assert "__main__" in source.read_text("utf-8")
    for argument in COMMANDS[name]:
        if argument.startswith("deploy/"):
            assert (ROOT / argument).is_file()


def test_the_commands_are_those_of_the_procfile() -> None:
    for service in (*SETTINGS, "restorer", "models"):
        module = COMMANDS[service][2]
        assert re.search(rf'^{service}: .*"\$UP_PYTHON" -m {re.escape(module)}\b', PROCFILE, re.M)
    (mlflow,) = re.findall(r"^mlflow: .*", PROCFILE, re.M)
    (triton,) = re.findall(r"^triton: .*", PROCFILE, re.M)
    assert "-m mlflow server" in mlflow and "tritonserver" in triton
    for flag in COMMANDS["triton"][2:]:
        assert flag.replace("*", '"*"') in triton or flag in triton


def test_the_variables_of_make_up_are_in_the_contract() -> None:
    """Those that the Procfile and `make_plan` set for our services; UP_… are the launcher's own."""
    plan = (ROOT / "services" / "launcher" / "plan.py").read_text("utf-8")
    named = set(re.findall(r'"((?:VLMIR|MLFLOW|RAY|OMP)_\w+)"', plan + PROCFILE))
    named |= set(re.findall(r"\bOMP_\w+", PROCFILE))
    known = set().union(*(environment(service) for service in (*SERVICES, "mlflow", "models")))
    assert named - known == set()
    assert {"VLMIR_FOLLOW", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI", "OMP_NUM_THREADS"} <= named


def test_ports_in_one_container_differ() -> None:
    for ports in (*PORTS.values(), {**PORTS["restorer"], **PORTS["ray"]}):
        assert len(set(ports.values())) == len(ports)


@pytest.mark.parametrize("client", ["captioner", "embedder", "sampler", "gateway", "restorer"])
def test_each_edge_is_in_the_code(client: str) -> None:
    """Who opens the store, follows the registry or has an address of another service among its settings."""
    source = sources(client)
    modules = imported(source)
    servers = {server for one, server in EDGES if one == client}
    assert ("minio" in servers) == (READS_STORE in modules)
    assert ("mlflow" in servers) == (READS_REGISTRY in modules)
    addresses = {
        server: variable
        for (one, server), variable in ADDRESSES.items()
        if one == client and server not in ("minio", "mlflow")
    }
    settings: type[BaseSettings] = SETTINGS.get(client, ClusterSettings)
    fields = {
        f"VLMIR_{name.upper()}"
        for name, field in settings.model_fields.items()
        if re.search(r"[Aa]ddress of the|host:port of", field.description or "")
    }
    assert set(addresses.values()) == fields


def test_the_calls_of_who_brings_models_are_in_the_code() -> None:
    folder = ROOT / "services" / "launcher"
    files = (folder / f"{name}.py" for name in ("models", "repository", "triton"))
    modules = set().union(*(imported(file.read_text("utf-8")) for file in files))
    reads = {
        "minio": "services.common.store",
        "mlflow": "services.common.registry",
        "triton": "tritonclient.grpc",
    }
    assert {server for client, server in EDGES if client == "models"} == set(reads)
    assert set(reads.values()) <= modules


def test_every_address_is_a_variable_that_its_client_reads() -> None:
    for (client, _), variable in ADDRESSES.items():
        assert not variable or variable in environment(client), (client, variable)


def test_all_who_are_called_have_ports_and_all_metrics_are_read() -> None:
    for client, server in EDGES:
        assert server in PORTS, (client, server)
    watched = {server for client, server in EDGES if client == "prometheus"}
    assert {service for service, ports in PORTS.items() if "metrics" in ports} - {"ray"} <= watched


def test_no_image_moves() -> None:
    for image in IMAGES.values():
        name, _, tag = image.rpartition(":")
        assert name.count("/") >= 2 and re.search(r"\d", tag) and tag != "latest"


def test_store_variables_have_the_stores_prefix() -> None:
    assert {name for name in environment("restorer") if name.startswith("VLMIR_STORE_")} == {
        f"VLMIR_STORE_{name.upper()}" for name in StoreSettings.model_fields
    }


def test_rays_metrics_have_a_port_of_their_own() -> None:
    from services.launcher.serve import METRICS

    assert METRICS in environment("restorer")
    dockerfile = (ROOT / "deploy" / "docker" / "restorer.Dockerfile").read_text("utf-8")
    assert f"{METRICS}={PORTS['ray']['metrics']}\n" in dockerfile


def test_the_registry_is_named_by_mlflows_variable() -> None:
    from services.common import registry

    assert '"MLFLOW_TRACKING_URI"' in inspect.getsource(registry)
