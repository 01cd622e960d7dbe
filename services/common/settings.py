"""Settings of a server, from the command line or from ``VLMIR_…`` environment variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from vlmir.image import Limits

__all__ = ["ServerSettings"]

_LIMITS = Limits()


class ServerSettings(BaseSettings):
    """What all servers can be told; a flag wins over its environment variable."""

    model_config = SettingsConfigDict(
        env_prefix="VLMIR_",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        extra="ignore",
        frozen=True,
    )

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
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged."
    )
