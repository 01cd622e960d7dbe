"""A service's weights from its settings: one bundle for good, or what the registry names."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from services.common.follower import Follower
from services.common.registry import MlflowRegistry, open_for
from services.common.releases import Releases, nothing
from services.common.settings import WeightsSettings
from services.common.telemetry.metrics import Metrics
from vlmir.bundle import Bundle

__all__ = ["observe_releases", "weights"]

log = logging.getLogger("vlmir.releases")

M = TypeVar("M")

DEFAULT = "tiny"
CLOSE_S = 5.0
"""Seconds that the end waits for a load under way."""


@asynccontextmanager
async def weights(
    settings: WeightsSettings,
    *,
    part: str,
    load: Callable[[Bundle], M],
    warm_up: Callable[[M], None],
    free: Callable[[M], None] = nothing,
    stop: asyncio.Event | None = None,
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
        stop: Ends the wait for the first weights, which may be long; then `Releases.names` may be empty, and what is
            under way is left behind.

    Raises:
        BundleError: Without a registry: the bundle is missing or broken.
        OptionError: A registry is followed, but MLFLOW_TRACKING_URI does not say which.
    """
    releases = Releases(part, load, warm_up, free, linger_s=settings.linger_s)
    try:
        if settings.follow:
            async with _followed(settings, part, releases, stop):
                yield releases
        else:
            name = settings.bundle or DEFAULT
            await _wait_for(lambda: _serve_bundle(name, part, releases), stop=stop)
            yield releases
    finally:
        await _wait_for(releases.close, within_s=CLOSE_S)


async def _wait_for(
    work: Callable[[], None], *, stop: asyncio.Event | None = None, within_s: float | None = None
) -> None:
    """Do some work in a thread; it is left behind when told to stop, or after some seconds.

    asyncio's own threads would not do: the process ends no sooner than they do.
    """
    result = concurrent.futures.Future[None]()
    result.set_running_or_notify_cancel()  # it can be left, but not cancelled

    def run() -> None:
        try:
            work()
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(None)

    threading.Thread(target=run, name="vlmir-weights", daemon=True).start()
    done = asyncio.wrap_future(result)
    waits: list[asyncio.Future[Any]] = [done]
    if stop is not None:
        waits.append(asyncio.ensure_future(stop.wait()))
    try:
        await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            done.result()
        else:
            log.info("stopping; what is being loaded is left behind")
    finally:
        for wait in waits:
            wait.cancel()


def observe_releases(metrics: Metrics, releases: Releases[Any]) -> None:
    """Show which release is in use, and whether a newer one was refused.

    Args:
        metrics: Where.
        releases: What is shown.
    """

    def current() -> dict[str, str]:
        return {"release": next(iter(releases.names), "")}

    metrics.observe_info("release", "The release in use; empty while there is none.", current)
    metrics.observe(
        "refused_release",
        "1 while a newer release is refused or cannot be had, else 0.",
        lambda: bool(releases.refused),
    )
    metrics.observe(
        "promotions_total", "Releases that took another's place.", lambda: releases.promotions
    )
    metrics.observe("releases", "Releases that may be asked for.", lambda: len(releases.names))


def _serve_bundle(name: str, part: str, releases: Releases[M]) -> None:
    bundle = open_for(part, name)
    releases.serve(bundle.release, bundle)


@asynccontextmanager
async def _followed(
    settings: WeightsSettings, part: str, releases: Releases[M], stop: asyncio.Event | None
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
        await _wait_for(follower.wait, stop=stop)
        yield
    finally:
        await asyncio.to_thread(follower.stop)
