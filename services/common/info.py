"""What every service says about itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from services.common.releases import Releases
from services.common.server import max_message_bytes
from vlmir import __version__
from vlmir.image import Limits
from vlmir.v1 import image_pb2

__all__ = ["Load", "service_info"]


class Load(NamedTuple):
    """Requests in a service."""

    depth: int
    """Admitted and not yet finished."""
    capacity: int
    """Admitted at most."""


def service_info(
    releases: Releases[Any], *, device: str, limits: Limits, load: Load, release: str = ""
) -> image_pb2.ServiceInfo:
    """The answer to "who are you"; without a release while none is loaded.

    Args:
        releases: What is held.
        device: Where it computes; empty while nothing is loaded.
        limits: Of the pictures in requests.
        load: How busy it is.
        release: Which of them is meant; empty for the current one.

    Raises:
        ReleaseError: It is not held.
    """
    info = image_pb2.ServiceInfo(
        device=device,
        limits=image_pb2.Limits(
            max_image_bytes=limits.max_bytes,
            max_image_pixels=limits.max_pixels,
            max_message_bytes=max_message_bytes(limits),
        ),
        queue_depth=load.depth,
        queue_capacity=load.capacity,
        version=__version__,
        refused_release=releases.refused,
        releases=releases.names,
    )
    if info.releases:
        with releases.lease(release) as held:
            info.release = held.release
            info.digests.update(held.digests)
    return info
