"""What is to be started, and with which variables."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from services.launcher.processes import MARK
from services.launcher.settings import LauncherSettings
from vlmir.registry import CHAMPION, SAMPLER

__all__ = ["FOLLOW", "MODELS", "MODELS_READY", "SERVICES", "Plan", "make_plan"]

FOLLOW = f"models:/{SAMPLER}@{CHAMPION}"
"""What the services follow."""

MODELS = "triton"
"""Triton's model repository in the cluster's folder."""

MODELS_READY = "triton-ready"
"""File in the cluster's folder: the repository has the champion's embedder, and Triton may begin."""

SERVICES = ("captioner", "embedder", "sampler")

# Ray's sockets lie some 68 bytes deeper, and a socket's path has at most 107.
_RAY_ROOM = 39


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A cluster that can be started."""

    parts: tuple[str, ...]
    """Lines of the Procfile."""
    variables: dict[str, str]
    """What its processes find in their environment."""
    store: str
    """URL or folder of the store."""
    temporary: str
    """Folder outside the cluster's own, to be removed with it; empty: none."""


def make_plan(folder: Path, settings: LauncherSettings, ports: dict[str, int]) -> Plan:
    """Plan a cluster.

    Args:
        folder: Of all that it keeps; absolute.
        settings: Of the launcher.
        ports: Name → port.
    """
    ray, temporary = _ray_folder(folder)
    store, has_minio = _store(folder, ports)
    has_triton = not os.environ.get("VLMIR_TRITON") and shutil.which("tritonserver") is not None
    variables = {
        MARK: str(folder),
        "UP_PYTHON": sys.executable,
        "UP_HOST": settings.host,
        **{f"UP_{name.upper()}_PORT": str(port) for name, port in ports.items()},
        **_threads(),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}",
        # Job runners, which only evaluate language models, would cost a gigabyte.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "VLMIR_FOLLOW": FOLLOW,
        "VLMIR_CACHE": str(folder / "cache"),
        **{f"VLMIR_{name.upper()}": f"127.0.0.1:{ports[name]}" for name in SERVICES},
        **store,
        **(_models(folder, settings, ports) if has_triton else {}),
        "RAY_TMPDIR": ray,
        # Ray's ports are open to the network, and whoever gets in there can run anything.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_secret(folder / "ray-token")),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
    }
    chosen = {"minio": has_minio, "triton": has_triton, "models": has_triton}
    parts = (
        "mlflow",
        *(part for part, wanted in chosen.items() if wanted),
        *SERVICES,
        "restorer",
        "gateway",
    )
    url = store.get("VLMIR_STORE_URL") or os.environ["VLMIR_STORE_URL"]
    return Plan(parts=parts, variables=variables, store=url, temporary=temporary)


def _ray_folder(folder: Path) -> tuple[str, str]:
    """Where Ray may put its own folder, and the same again where that is elsewhere than in ``folder``."""
    if len(os.fsencode(folder)) <= _RAY_ROOM:
        shutil.rmtree(folder / "ray", ignore_errors=True)  # the last session's logs
        return str(folder), ""
    elsewhere = tempfile.mkdtemp(prefix="vlmir-", dir="/tmp")
    return elsewhere, elsewhere


def _store(folder: Path, ports: dict[str, int]) -> tuple[dict[str, str], bool]:
    """Variables of the store, and whether they are those of a MinIO to be started."""
    if os.environ.get("VLMIR_STORE_URL"):
        return {}, False
    if shutil.which("minio") is None:
        return {"VLMIR_STORE_URL": str(folder / "store")}, False
    return {
        "VLMIR_STORE_URL": f"http://127.0.0.1:{ports['minio']}",
        "VLMIR_STORE_ACCESS_KEY": "vlmir",
        "VLMIR_STORE_SECRET_KEY_FILE": str(_secret(folder / "minio-secret")),
    }, True


def _models(folder: Path, settings: LauncherSettings, ports: dict[str, int]) -> dict[str, str]:
    """Variables of those who use Triton, and of who brings it models."""
    return {
        "VLMIR_TRITON": f"127.0.0.1:{ports['triton']}",
        "VLMIR_MODELS": str(folder / MODELS),
        "VLMIR_MODELS_BACKEND": settings.triton_backend,
    }


def _secret(file: Path) -> Path:
    """A file with a secret that only its owner can read; made where it is missing."""
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_hex(16))
    return file


def _threads() -> dict[str, str]:
    """The sampler does three quarters of the work and gets every processor; the others get few, so as not to crowd."""
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return {"UP_SAMPLER_THREADS": str(processors), "UP_SMALL_THREADS": str(max(1, processors // 4))}
