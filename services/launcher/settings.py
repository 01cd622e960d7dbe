"""What can be told to ``make up``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["PREFIX", "ROOT", "LauncherSettings"]

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: the Procfile's commands run here."""

PREFIX = "VLMIR_UP_"


def _port(default: int, what: str) -> int:
    found: int = Field(default, ge=0, le=65535, description=f"Port of {what}; 0 takes a free one.")
    return found


class LauncherSettings(BaseSettings):
    """The cluster on one machine. A flag wins over its environment variable, such as VLMIR_UP_GATEWAY_PORT."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        extra="ignore",
        frozen=True,
    )

    folder: Path = Field(
        ROOT / "runs" / "cluster", description="Folder of all that the cluster keeps."
    )
    bundle: str = Field(
        "tiny",
        description="Name of a shipped bundle, or the path of a measured one's folder: what a registry that has no "
        "champion yet begins with.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address at which the gateway listens; 0.0.0.0 for all. The others keep to 127.0.0.1.",
    )
    wait_s: float = Field(
        300.0, gt=0, description="Seconds within which everything has to be healthy."
    )
    foreground: bool = Field(
        False, description="Stay until Ctrl-C or SIGTERM, then stop the cluster."
    )
    gateway_port: int = _port(50050, "the gateway, the cluster's address")
    gateway_metrics_port: int = _port(50150, "the gateway's metrics")
    restorer_port: int = _port(50052, "Ray Serve's gRPC side")
    restorer_http_port: int = _port(50053, "Ray Serve's HTTP side")
    captioner_port: int = _port(50061, "the captioner")
    captioner_metrics_port: int = _port(50161, "the captioner's metrics")
    embedder_port: int = _port(50062, "the embedder")
    embedder_metrics_port: int = _port(50162, "the embedder's metrics")
    sampler_port: int = _port(50063, "the sampler")
    sampler_metrics_port: int = _port(50163, "the sampler's metrics")
    mlflow_port: int = _port(5000, "MLflow")
    minio_port: int = _port(9000, "MinIO, where there is one")
    triton_port: int = _port(8001, "Triton's gRPC side, where there is one")
    triton_http_port: int = _port(8000, "Triton's HTTP side")
    triton_metrics_port: int = _port(8002, "Triton's metrics")
    triton_backend: Literal["onnxruntime", "python"] = Field(
        "onnxruntime",
        description="What runs the models in Triton; python is for a Triton without ONNX Runtime.",
    )
