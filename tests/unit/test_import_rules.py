"""Who may import whom: the layers of the architecture, held by reading every import statement."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRANSPORT = {"google", "grpc", "grpc_health", "grpc_reflection", "grpc_status"}
INFRASTRUCTURE = {"ray", "mlflow", "minio", "tritonclient"}
PEERS = {"image", "degradations", "nn", "diffusion", "metrics"}
BELOW = {
    # vlmir.<part> may import these parts of vlmir, and itself; others may import all but ABOVE.
    "errors": set[str](),
    "formats": set[str](),
    "config": {"errors"},
    **{peer: {"errors", "config"} for peer in PEERS},
    "image": {"errors", "config", "formats"},
    "vlm": {"errors", "config", "nn"},
}
ABOVE = {"cli", "client", "v1"}


def part(module: str) -> str:
    """``vlmir.image.codec`` → ``image``; "" for the package itself."""
    return [*module.split("."), ""][1]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def broken_rule(importer: str, imported: str) -> str | None:
    """The rule that this import breaks, or None."""
    top = imported.partition(".")[0]
    if within(importer, "vlmir"):
        return broken_by_library(importer, imported)
    if importer == "training.release.triton_model" and top in {
        "services",
        "torch",
        "training",
        "vlmir",
    }:
        return "Triton's interpreter has NumPy and ONNX Runtime only"
    if within(importer, "training") and top == "services":
        return "training and services meet only in the registry"
    if within(importer, "services"):
        if top == "training":
            return "training and services meet only in the registry"
        own = part(importer)
        if top == "services" and part(imported) not in ("", "common", own):
            return "a service never imports another service"
        if within(importer, "services.restorer") and top == "torch":
            return "the orchestrator imports no torch of its own"
    return None


def broken_by_library(importer: str, imported: str) -> str | None:
    top, own, other = imported.partition(".")[0], part(importer), part(imported)
    if top in ("services", "training"):
        return "the library knows nothing of services and training"
    if top in INFRASTRUCTURE or (top in TRANSPORT and own != "client"):
        return "no transport, no infrastructure in the library; gRPC in vlmir.client only"
    if top != "vlmir" or own == other:
        return None
    if own == "metrics" and within(imported, "vlmir.image.color"):
        return None
    if own in BELOW and other not in BELOW[own]:
        return f"vlmir.{own} may import {sorted(BELOW[own])} only"
    if other == "v1" and own != "client":
        return "only vlmir.client uses the generated stubs"
    if other in ABOVE and own not in ABOVE | {"__main__"}:
        return f"nothing below imports vlmir.{other}"
    return None


def imports(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of every import: at the top, in a function or by `import_module`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            # `from vlmir import image` and `from vlmir.image import color` import modules, too.
            yield from ((node.lineno, f"{home}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def module_files() -> list[tuple[str, Path]]:
    found = []
    for package in ("vlmir", "services", "training"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] != ("vlmir", "v1"):
                found.append((".".join(parts).removesuffix(".__init__"), path))
    return found


@pytest.mark.parametrize(("module", "path"), module_files(), ids=lambda value: str(value))
def test_imports_keep_the_rules(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    broken = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}: {rule}"
        for line, name in imports(source, module, is_package=path.name == "__init__.py")
        if (rule := broken_rule(module, name))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vlmir.pipeline", "import grpc"),
        ("vlmir.pipeline", "def f():\n    from grpc.aio import server"),
        ("vlmir.bundle", "import importlib\nimportlib.import_module('mlflow')"),
        ("vlmir.client", "import ray"),
        ("vlmir.image.codec", "from vlmir.nn import blocks"),
        ("vlmir.image.codec", "from vlmir import degradations"),
        ("vlmir.image.codec", "from ..metrics import fidelity"),
        ("vlmir.metrics.fidelity", "from vlmir.image.codec import decode"),
        ("vlmir.vlm.clip", "from vlmir.pipeline import Restorer"),
        ("vlmir.vlm.clip", "import vlmir.bundle"),
        ("vlmir.pipeline", "from vlmir.v1 import image_pb2"),
        ("vlmir.pipeline", "from vlmir.cli import main"),
        ("vlmir.config", "from training import loop"),
        ("services.sampler.servicer", "from services.embedder import servicer"),
        ("services.common.wire", "import services.restorer"),
        ("services.restorer.servicer", "import torch.nn"),
        ("services.sampler.servicer", "import training"),
        ("training.stage1", "from services.common import wire"),
        ("training.release.triton_model", "import vlmir"),
    ],
)
def test_a_broken_rule_is_seen(module: str, source: str) -> None:
    found = [broken_rule(module, name) for _, name in imports(source, module, is_package=False)]
    assert any(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vlmir.client", "import grpc\nfrom vlmir.v1 import image_pb2"),
        ("vlmir.metrics.fidelity", "from vlmir.image.color import luma"),
        ("vlmir.metrics.fidelity", "from vlmir.image import color"),
        (
            "vlmir.vlm.clip",
            "from vlmir.nn.blocks import Block\nfrom vlmir.errors import BundleError",
        ),
        ("vlmir.pipeline", "import torch\nfrom vlmir.image import decode"),
        ("services.sampler.servicer", "import torch\nfrom services.common import wire"),
        ("services.restorer.embedded", "from services.restorer.servicer import Servicer"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str) -> None:
    names = [name for _, name in imports(source, module, is_package=False)]
    assert names
    assert not any(broken_rule(module, name) for name in names)
