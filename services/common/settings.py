"""Settings of a server, from the command line or from ``VLMIR_…`` environment variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from vlmir.image import Limits
from vlmir.options import Precision

__all__ = [
    "ChannelSettings",
    "ComputeSettings",
    "ProcessSettings",
    "ServerSettings",
    "WeightsSettings",
]

_LIMITS = Limits()


class ProcessSettings(BaseSettings):
    """What all processes that run on can be told; a flag wins over its environment variable."""

    model_config = SettingsConfigDict(
        env_prefix="VLMIR_",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        extra="ignore",
        frozen=True,
    )

    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged."
    )
    log_format: str = Field(
        "text",
        pattern="^(text|json)$",
        description="Log lines for people, or one JSON object each.",
    )


class ServerSettings(ProcessSettings):
    """What all servers can be told."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, description="Pictures computed side by side.")
    queue: int = Field(16, ge=0, description="Pictures that may wait; one more is refused.")
    limit_s: float = Field(
        600.0, ge=0, description="Seconds a call may take, its wait included; 0 for no limit."
    )
    # gRPC and protobuf carry messages of up to 2 GiB; the rest of a request needs some room beside the picture.
    max_bytes: int = Field(
        _LIMITS.max_bytes,
        ge=1,
        le=2**31 - 2**21,
        description="Largest picture file taken, bytes.",
    )
    max_pixels: int = Field(
        _LIMITS.max_pixels, ge=1, description="Largest picture taken, width × height."
    )
    grace_s: float = Field(30.0, ge=0, description="Seconds that running calls get on shutdown.")
    drain_s: float = Field(
        0.0,
        ge=0,
        description="Seconds between NOT_SERVING and closing the port, for balancers to notice.",
    )
    renew_s: float = Field(
        0.0,
        ge=0,
        description="Seconds after which callers connect anew, and so find servers that are new behind a name; calls "
        "under way go on. 0 for never.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port at which Prometheus may read, on the same host; 0 takes a free one. Without it: none.",
    )
    tls_cert: Path | None = Field(
        None, description="Certificate chain in PEM; with --tls-key, only TLS is spoken."
    )
    tls_key: Path | None = Field(None, description="The certificate's key in PEM, unencrypted.")
    tls_client_ca: Path | None = Field(
        None,
        description="Certificate of the authority in PEM whose clients are let in; without it, any client is.",
    )


class ChannelSettings(BaseModel):
    """How a server connects to others. To be mixed into a server's settings."""

    tls_ca: Path | None = Field(
        None,
        description="Certificate of the authority in PEM that other services are proven by; without it they are "
        "spoken to without TLS.",
    )
    tls_client_cert: Path | None = Field(
        None, description="Certificate chain in PEM that is shown to other services."
    )
    tls_client_key: Path | None = Field(
        None, description="That certificate's key in PEM, unencrypted."
    )
    keepalive_s: float = Field(
        60.0, ge=10, description="Seconds of silence after which a connection is tried out."
    )


class ComputeSettings(BaseModel):
    """Where the sampler's network runs. To be mixed into a server's settings."""

    device: str = Field(
        "auto",
        description="Where the sampler's network runs, such as cpu or cuda:1; auto: a GPU if there is one.",
    )
    precision: Precision = Field(
        "auto",
        description="Of the sampler's network; auto: bf16 where the processor multiplies in it, else fp32.",
    )


class WeightsSettings(BaseModel):
    """Where a service's weights come from: a bundle, or the registry. To be mixed into a server's settings."""

    bundle: str = Field(
        "",
        description="Name of a shipped bundle, or the path of its folder: what is served, or with --follow what is "
        "served until the registry has any. Without either: tiny.",
    )
    follow: str = Field(
        "",
        pattern=r"^(models:/vlmir-sampler@[\w-]+)?$",
        description="Alias in the MLflow registry at MLFLOW_TRACKING_URI that says what is served, such as "
        "models:/vlmir-sampler@champion.",
    )
    poll_s: float = Field(5.0, gt=0, description="Seconds between two looks at the alias.")
    linger_s: float = Field(
        30.0, ge=0, description="Seconds since its last use that an old release stays in memory."
    )
    cache: Path = Field(
        Path("~/.cache/vlmir"), description="Folder for weights that came from the registry."
    )
