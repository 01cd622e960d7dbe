"""A service's weights from its settings: one bundle for good, or what the registry names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from services.common.follower import Follower
from services.common.registry import MlflowRegistry, open_for
from services.common.releases import Releases, nothing
from services.common.settings import WeightsSettings
from vlmir.bundle import Bundle

__all__ = ["weights"]

M = TypeVar("M")

DEFAULT = "tiny"


@asynccontextmanager
async def weights(
    settings: WeightsSettings,
    *,
    part: str,
    load: Callable[[Bundle], M],
    warm_up: Callable[[M], None],
    free: Callable[[M], None] = nothing,
) -> AsyncIterator[Releases[M]]:
    """Hold a service's weights while the block runs.

    On entry the weights are loaded; if a registry is followed and neither it nor its cache nor ``--bundle`` has any,
    `Releases.names` is empty until there are some.

    Args:
        settings: What is served.
        part: The service's part of a bundle: captioner, embedder or sampler.
        load: Makes the model; see :class:`Releases`. This and the next two run in other threads.
        warm_up: Lets it compute once.
        free: Gives back what the garbage collector does not, such as threads.

    Raises:
        BundleError: Without a registry: the bundle is missing or broken.
        OptionError: A registry is followed, but MLFLOW_TRACKING_URI does not say which.
    """
    releases = Releases(part, load, warm_up, free, linger_s=settings.linger_s)
    try:
        if settings.follow:
            async with _followed(settings, part, releases):
                yield releases
        else:
            await asyncio.to_thread(_serve_bundle, settings.bundle or DEFAULT, part, releases)
            yield releases
    finally:
        await asyncio.to_thread(releases.close)


def _serve_bundle(name: str, part: str, releases: Releases[M]) -> None:
    bundle = open_for(part, name)
    releases.serve(bundle.release, bundle)


@asynccontextmanager
async def _followed(
    settings: WeightsSettings, part: str, releases: Releases[M]
) -> AsyncIterator[None]:
    follower = Follower(
        MlflowRegistry(settings.follow),
        releases,
        part=part,
        cache=settings.cache,
        poll_s=settings.poll_s,
        stand_in=settings.bundle,
    )
    follower.start()
    try:
        await asyncio.to_thread(follower.wait)
        yield
    finally:
        await asyncio.to_thread(follower.stop)
