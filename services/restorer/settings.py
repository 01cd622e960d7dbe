"""Settings of the restorer in a cluster, from ``VLMIR_…`` environment variables or the arguments of a Serve config."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.settings import ChannelSettings
from vlmir.image import Limits

__all__ = ["ClusterSettings"]

_LIMITS = Limits()


class ClusterSettings(ChannelSettings, BaseSettings):
    """Restores pictures by means of three other services."""

    model_config = SettingsConfigDict(env_prefix="VLMIR_", extra="ignore", frozen=True)

    captioner: str = Field(
        "127.0.0.1:50061", description="Address of the captioner, host:port; empty for none."
    )
    embedder: str = Field("127.0.0.1:50062", description="Address of the embedder.")
    sampler: str = Field("127.0.0.1:50063", description="Address of the sampler.")
    allow_unconditioned: bool = Field(
        False, description="Restore without recognising the damage while the embedder is down."
    )
    caption_s: float = Field(10.0, gt=0, description="Seconds that a caption may take.")
    embed_s: float = Field(
        10.0, gt=0, description="Seconds that the embedder may take where it may be left out."
    )
    workers: int = Field(16, ge=1, description="Pictures restored side by side in a replica.")
    queue: int = Field(16, ge=0, description="Pictures that may wait in a replica.")
    limit_s: float = Field(
        600.0, ge=0, description="Seconds a call may take, its wait included; 0 for no limit."
    )
    max_bytes: int = Field(
        _LIMITS.max_bytes, ge=1, le=2**31 - 2**21, description="Largest picture file taken, bytes."
    )
    max_pixels: int = Field(
        _LIMITS.max_pixels, ge=1, description="Largest picture taken, width × height."
    )
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged."
    )
    log_format: str = Field(
        "text", pattern="^(text|json)$", description="Log lines for people, or JSON objects."
    )
