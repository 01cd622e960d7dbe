"""The embedding service: it only translates."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import grpc

from services.common.deadlines import deadline_of
from services.common.info import Load, service_info
from services.common.releases import Releases
from services.common.tensors import from_message, to_message
from services.embedder.model import EmbedderModel
from vlmir.image import Limits
from vlmir.v1 import embedder_pb2
from vlmir.v1.embedder_pb2_grpc import EmbedderServiceServicer

__all__ = ["EmbedderServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_RESIZE: dict[str, embedder_pb2.ResizeMode.ValueType] = {
    "crop": embedder_pb2.RESIZE_MODE_CROP,
    "squash": embedder_pb2.RESIZE_MODE_SQUASH,
}


class EmbedderServicer(EmbedderServiceServicer):
    """Answers ``EmbedImage``, ``EmbedText`` and ``Info``; errors are left to the interceptor.

    Args:
        releases: The embedders that may answer.
        limits: Of the messages.
        limit_s: Seconds a call may take, its wait included; 0 for no limit but the caller's.
    """

    def __init__(
        self, releases: Releases[EmbedderModel], *, limits: Limits, limit_s: float
    ) -> None:
        self._releases, self._limits, self._limit_s = releases, limits, limit_s

    async def EmbedImage(
        self, request: embedder_pb2.EmbedImageRequest, context: Context
    ) -> embedder_pb2.EmbedImageResponse:
        """Embed one picture."""
        deadline = deadline_of(request, context, limit_s=self._limit_s)
        with self._releases.lease(request.release) as held:
            began = time.perf_counter()
            views = from_message(request.pixels, shape=held.model.views.shape, name="pixels")
            seen = await held.model.embed_image(views, deadline=deadline)
            return embedder_pb2.EmbedImageResponse(
                image_embedding=to_message(seen.f_I.numpy()),
                degradation_embedding=to_message(seen.f_D.numpy()),
                degradations=seen.degradations,
                release=held.release,
                milliseconds={"embed": _milliseconds(began)},
            )

    async def EmbedText(
        self, request: embedder_pb2.EmbedTextRequest, context: Context
    ) -> embedder_pb2.EmbedTextResponse:
        """Embed one caption."""
        deadline = deadline_of(request, context, limit_s=self._limit_s)
        with self._releases.lease(request.release) as held:
            began = time.perf_counter()
            f_T = await held.model.embed_text(request.text, deadline=deadline)
            return embedder_pb2.EmbedTextResponse(
                text_embedding=to_message(f_T),
                release=held.release,
                milliseconds={"embed": _milliseconds(began)},
            )

    async def Info(
        self, request: embedder_pb2.EmbedderServiceInfoRequest, context: Context
    ) -> embedder_pb2.EmbedderServiceInfoResponse:
        """Say what is being served, or what a release that is held is like."""
        if not (self._releases.names or request.release):
            idle = service_info(self._releases, device="", limits=self._limits, load=self.load)
            return embedder_pb2.EmbedderServiceInfoResponse(service=idle)
        with self._releases.lease(request.release) as held:
            model, views = held.model, held.model.views
            return embedder_pb2.EmbedderServiceInfoResponse(
                service=service_info(
                    self._releases,
                    device=model.backend.name,
                    limits=self._limits,
                    load=self.load,
                    release=held.release,
                ),
                image_size=views.image_size,
                embedding_dim=model.prototypes.shape[1],
                labels=model.labels,
                resize=_RESIZE[views.resize],
                detail=views.detail,
                window=views.window,
                prototypes=to_message(model.prototypes.numpy()),
            )

    @property
    def load(self) -> Load:
        """Requests being computed, and for how many there is room."""
        if not self._releases.names:
            return Load(0, 0)
        with self._releases.lease() as held:
            return Load(held.model.backend.depth, held.model.backend.capacity)


def _milliseconds(began: float) -> float:
    return round((time.perf_counter() - began) * 1e3, 3)
