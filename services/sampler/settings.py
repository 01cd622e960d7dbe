"""Settings of the sampler."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ComputeSettings, ServerSettings, WeightsSettings
from vlmir.image import Limits

__all__ = ["SamplerSettings"]


class SamplerSettings(ComputeSettings, WeightsSettings, ServerSettings):
    """Restores arrays of pixels over gRPC, many requests in each network call."""

    workers: int = Field(16, ge=1, description="Pictures sampled side by side.")
    queue: int = Field(64, ge=0, description="Pictures that may wait; one more is refused.")
    # The time of a call is how long a new request may have to wait to join. A processor is no faster for more.
    batch_pixels: int = Field(
        512 * 512,
        ge=1,
        description="Most pixels in one network call, where memory allows; a graphics processor likes several times "
        "more.",
    )
    memory_mib: int | None = Field(
        None,
        ge=64,
        description="Memory that pictures and network calls may take where the network runs, weights aside, MiB; "
        "without it, what is free at the start.",
    )
    max_window: int = Field(
        2048 * 2048,
        ge=1,
        description="Most pixels of a tile, or of a picture not to be tiled: others wait while it is evaluated.",
    )
    max_bytes: int = Field(
        12 * Limits().max_pixels,
        ge=1,
        le=2**31 - 2**21,
        description="Most bytes of pixels taken in a message; a pixel has 12.",
    )
    max_pixels: int = Field(
        Limits().max_pixels,
        ge=1,
        description="Largest picture taken, width × height; those of more than --batch-pixels that are sampled side by "
        "side have no more together, and less where memory is short.",
    )
