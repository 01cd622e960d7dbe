"""A small real restorer without networks, and a real server in a thread, for the service tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from services.common.settings import ServerSettings
from services.common.store import Store
from services.common.work import WorkQueue
from services.restorer.embedded import restorer_server
from vlmir.errors import OptionError
from vlmir.image import Image, Limits, decode, encode
from vlmir.pipeline import Progress, Report, RestoreOptions, Restorer

PATIENCE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class SmallRestoration:
    image: Image
    report: Report
    format: str | None
    degraded: bool = False

    def encode(self) -> bytes:
        return encode(self.image, format=self.format)


class SmallRestorer:
    """Inverts a picture, in steps; follows `vlmir.pipeline.Restorer`.

    With a gate, each step waits until the test lets one through.
    """

    release = "small-1"
    digests = {"sampler": "ab" * 32}  # noqa: RUF012
    device = "cpu"
    labels = ("noisy", "clean")
    solvers = ("ddim", "posterior")

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        gate: threading.Semaphore | None = None,
        fault: Exception | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._gate, self._fault = gate, fault
        self.options: list[RestoreOptions] = []
        self.started, self.closed = threading.Event(), threading.Event()

    def stream(
        self, image: bytes, options: RestoreOptions, *, previews: bool = False
    ) -> Generator[Progress, None, SmallRestoration]:
        self.options.append(options)
        self.started.set()
        try:
            picture = decode(image, self.limits)
            if options.solver not in (None, *self.solvers):
                raise OptionError(f"Unknown solver {options.solver!r}.")
            if self._fault is not None:
                raise self._fault
            inverse = picture.with_pixels(np.float32(1) - picture.pixels)
            steps = options.steps or 3
            for step in range(1, steps + 1):
                if self._gate is not None:
                    assert self._gate.acquire(timeout=PATIENCE_S)
                preview = inverse.pixels if previews else None
                yield Progress(step=step, steps=steps, share=step / steps, preview=preview)
            return SmallRestoration(
                image=inverse, report=a_report(options, inverse), format=options.format
            )
        finally:
            self.closed.set()


def a_report(options: RestoreOptions, image: Image) -> Report:
    return Report(
        caption=options.caption or "a dog",
        degradations={"noisy": 0.75, "clean": 0.25},
        degradation="noisy",
        release="small-1",
        digests={"sampler": "ab" * 32},
        seed=options.seed,
        solver="ddim",
        steps=options.steps or 3,
        realism=0.5,
        ensemble=True,
        strength=1.0,
        width=image.width,
        height=image.height,
        tiles=1,
        tile_size=0,
        milliseconds={"sample": 1.5},
        warnings=("no captioner",),
    )


def a_picture(height: int = 20, width: int = 30) -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode(Image.from_levels(levels), format="png")


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server at work in another thread."""

    address: str
    work: WorkQueue
    stop: threading.Event
    """Set it to stop the server; leaving the context does too."""

    stopped: threading.Event


@contextmanager
def running_server(
    restorer: SmallRestorer | Restorer, *, store: Store | None = None, **settings: Any
) -> Iterator[Running]:
    """Serve ``restorer`` on a free port."""
    chosen = ServerSettings(**{"port": 0, "grace_s": 5.0, **settings})
    work = WorkQueue(workers=chosen.workers, waiting=chosen.queue)
    ready, stop, stopped = threading.Event(), threading.Event(), threading.Event()
    address: list[str] = []

    async def serve() -> None:
        server = restorer_server(cast(Restorer, restorer), work, chosen, store=store)
        address.append(await server.start())
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.stop()
        stopped.set()
        await asyncio.to_thread(work.close)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield Running(address=address[0], work=work, stop=stop, stopped=stopped)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
