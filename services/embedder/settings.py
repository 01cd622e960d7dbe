"""Settings of the embedder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from services.common.settings import ServerSettings, WeightsSettings

__all__ = ["BackendName", "EmbedderSettings"]

BackendName: TypeAlias = Literal["auto", "torch", "onnxruntime", "triton"]


class EmbedderSettings(WeightsSettings, ServerSettings):
    """Embeds pictures and captions over gRPC."""

    queue: int = Field(64, ge=0, description="Requests that may wait; one more is refused.")
    backend: BackendName = Field(
        "auto",
        description="What computes; auto: Triton if its address is given, else ONNX Runtime if the bundle has the "
        "ONNX files, else torch.",
    )
    triton: str = Field("", description="host:port of Triton's gRPC side.")
    triton_wait_s: float = Field(
        30.0,
        ge=0,
        description="Seconds to wait for a Triton that is not there when it is needed first.",
    )
    onnx: Path | None = Field(
        None,
        description="Folder of clip_image.onnx and clip_text.onnx; default: embedder/onnx or onnx within the bundle.",
    )
    batch: int = Field(8, ge=1, description="Requests computed together at most, in this process.")
    probe_s: float = Field(
        2.0, gt=0, description="Seconds between two trials of Triton, which decide on health."
    )
