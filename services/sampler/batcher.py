"""Continuous batching: windows of many pictures, at any of their steps, in each network call.

One thread owns the network. At every turn it drops the jobs that nobody waits for, begins waiting ones, and evaluates
the windows of those that were served least, as many as fit one call. A new request so joins at the next network call,
beside whatever is under way, and a small picture is done long before a big one that came earlier.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from services.sampler.job import Event, Job, Sampled, Task
from services.sampler.share import pick, startable
from vlmir.errors import DeadlineError, OverloadedError, UnavailableError
from vlmir.sampling import SampleStep
from vlmir.sweeps import Evaluation, evaluate

__all__ = ["Batcher", "Stats"]

log = logging.getLogger("vlmir.sampler")

T = TypeVar("T")

_STOPPING = "the sampler is stopping; try again in a moment"
_SOONEST_S = 0.1
"""Least delay that a refused caller is told."""


@dataclass
class Stats:
    """What the network has done since the start; written by the batcher's thread alone."""

    batches: int = 0
    """Network calls."""
    windows: int = 0
    """Windows in them."""
    pixels: int = 0
    """Pixels in them."""
    steps: int = 0
    """Whole evaluations of whole pictures."""
    retries: int = 0
    """Calls that failed and were made again, window by window."""
    seconds: float = 0.0
    """Time spent in network calls."""

    @property
    def mean_windows(self) -> float:
        """Windows in a network call, on average."""
        return self.windows / self.batches if self.batches else 0.0


class Batcher:
    """Samples many pictures at once.

    Args:
        active: Pictures under way at once, at least 1; each holds a few copies of its pixels in memory.
        waiting: How many more may wait; one more is refused.
        pixels: Most pixels of one network call, at least 1, and no more than the plan of any picture under way has; a
            window with more goes alone.
        room: Most pixels under way of pictures that have more than ``pixels``; with those that wait, of all pictures,
            four times as many. One picture is always taken.
    """

    def __init__(self, *, active: int, waiting: int, pixels: int, room: int) -> None:
        self.capacity = active + waiting
        """Pictures admitted at most, those under way included."""
        self.room = room
        """Most pixels of big pictures under way."""
        self.stats = Stats()
        self._active, self._pixels = active, pixels
        self._changed = threading.Condition()
        self._jobs = list[Job]()
        self._closed = False
        self._pixels_per_s = 0.0
        self._thread = threading.Thread(target=self._serve, name="vlmir-batcher", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Pictures admitted and not yet finished."""
        with self._changed:
            return sum(not job.gone for job in self._jobs)

    @property
    def active(self) -> int:
        """Pictures under way."""
        with self._changed:
            return sum(job.begun for job in self._jobs)

    def check(self) -> None:
        """See whether pictures can be sampled at all.

        Raises:
            UnavailableError: The batcher was closed, or its thread has ended.
        """
        if self._closed or not self._thread.is_alive():
            raise UnavailableError(_STOPPING)

    def check_room(self, size: int) -> None:
        """Refuse a request before any work is spent on reading it.

        Args:
            size: Pixels of its picture.

        Raises:
            OverloadedError: There is no room; says when to try again.
            UnavailableError: The batcher was closed.
        """
        with self._changed:
            if self._closed:
                raise UnavailableError(_STOPPING)
            sizes = [job.task.size for job in self._jobs if not job.gone]
            if len(sizes) < self.capacity and (not sizes or sum(sizes) + size <= 4 * self.room):
                return
            delay = self._delay()
        raise OverloadedError(
            f"the queue is full ({len(sizes)} requests of {sum(sizes) / 1e6:.1f} megapixels, at most "
            f"{self.capacity} of {4 * self.room / 1e6:.1f}); try again in {delay:.1f} s",
            retry_after_s=delay,
        )

    async def run(
        self, task: Task, *, previews: bool = False, deadline: float | None = None
    ) -> AsyncGenerator[SampleStep | Sampled, None]:
        """Sample one picture; closing this generator cancels, and frees its place at once.

        Args:
            task: What to do.
            previews: Whether steps carry x̂₀ after whole evaluations; big ones are left out where the reader is slow.
            deadline: Reading of ``time.monotonic`` after which to give up, or None.

        Yields:
            A step after each window of each evaluation, at last the result.

        Raises:
            OverloadedError: There is no room; says when to try again.
            DeadlineError: The deadline passed.
            OptionError: The solver or its steps are impossible.
            UnavailableError: The batcher was closed.
            VlmirError: The network's output is unfit.
        """
        loop = asyncio.get_running_loop()
        inbox = asyncio.Queue[Event]()

        def post(event: Event) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, event)

        job = Job(task, post, previews=previews)

        def late() -> None:
            self._leave(job)
            inbox.put_nowait(
                DeadlineError(
                    "the time ran out; grant more of it, ask for fewer steps, or raise the server's --limit-s"
                )
            )

        self._admit(job)
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), late)
        try:
            while not isinstance(event := await inbox.get(), Sampled):
                if isinstance(event, Exception):
                    raise event
                if event.x0 is not None:
                    job.read += event.x0.nbytes
                yield event
            yield event
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(job)

    def close(self) -> None:
        """Wait for the network call under way, and end: who still waits is told that the sampler is stopping.

        The event loops of those who wait must still be running.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _delay(self) -> float:
        """Seconds until about half of the work admitted will be done."""
        if not self._pixels_per_s:
            return 1.0
        left = sum(job.left for job in self._jobs if not job.gone)
        return max(_SOONEST_S, left / self._pixels_per_s / 2)

    def _admit(self, job: Job) -> None:
        with self._changed:
            self.check_room(job.task.size)
            self._jobs.append(job)
            self._changed.notify()

    def _leave(self, job: Job) -> None:
        with self._changed:
            job.gone = True

    # From here on: the batcher's thread.

    def _serve(self) -> None:
        try:
            while self._turn():
                self._step()
        except Exception:
            log.exception("the batcher failed unexpectedly; it samples nothing any more")
        with self._changed:
            self._closed = True
        for job in list(self._jobs):
            self._end(job, UnavailableError(_STOPPING))

    def _step(self) -> None:
        """Make one network call; on return nothing of it is kept, so that waiting for work holds no old model."""
        jobs = self._begun()
        # What one picture leaves of the memory is all that there is for a call, whoever's windows it has.
        pixels = min([self._pixels, *(job.task.plan.call_pixels for job in jobs)])
        batch = pick(jobs, pixels=pixels, take=self._take)
        if batch:
            self._evaluate(batch)

    def _turn(self) -> bool:
        """Wait for work, drop jobs that nobody waits for, begin others; False at the end of all."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._jobs)
            if self._closed:
                return False
            gone = [job for job in self._jobs if job.gone]
            self._jobs = [job for job in self._jobs if not job.gone]
            starting = startable(self._jobs, slots=self._active, big=self._pixels, room=self.room)
        for job in gone:
            job.close()
        clock = min((job.served for job in self._begun()), default=0)
        for job in starting:
            self._try(job, lambda job=job: job.begin(clock))  # type: ignore[misc]
        return True

    def _begun(self) -> list[Job]:
        with self._changed:
            return [job for job in self._jobs if job.begun]

    def _take(self, job: Job) -> Evaluation | None:
        return self._try(job, job.take)

    def _evaluate(self, batch: list[tuple[Job, Evaluation]]) -> None:
        """Make one network call and hand out its answers; if it fails, one call for each window."""
        began = time.perf_counter()
        try:
            outputs = evaluate([asked for _, asked in batch])
        except Exception as error:
            self._salvage(batch, error)
            return
        self._count(batch, time.perf_counter() - began)
        for (job, asked), output in zip(batch, outputs, strict=True):
            self._answer(job, asked, output)

    def _salvage(self, batch: list[tuple[Job, Evaluation]], error: Exception) -> None:
        """After a failed call only those jobs fail that fail alone."""
        if len(batch) == 1:
            self._end(batch[0][0], error)
            return
        log.warning("a network call of %d windows failed; trying each alone: %r", len(batch), error)
        self.stats.retries += 1
        for job, asked in batch:
            if not job.gone:
                self._evaluate([(job, asked)])

    def _answer(self, job: Job, asked: Evaluation, output: Tensor) -> None:
        if job.gone:
            return
        done = job.done
        events = self._try(job, lambda: job.give(asked, output)) or ()
        self.stats.steps += job.done - done
        for event in events:
            if isinstance(event, Sampled):
                self._end(job, event)
            else:
                self._post(job, event)

    def _try(self, job: Job, act: Callable[[], T]) -> T | None:
        """Do something for one job; an error ends that job alone."""
        try:
            return act()
        except Exception as error:
            self._end(job, error)
            return None

    def _end(self, job: Job, outcome: Sampled | Exception) -> None:
        job.close()
        with self._changed:
            self._jobs.remove(job)
            job.gone = True
        self._post(job, outcome)

    def _post(self, job: Job, event: Event) -> None:
        try:
            job.post(event)
        except RuntimeError:  # its event loop was closed: nobody waits any more
            self._leave(job)

    def _count(self, batch: list[tuple[Job, Evaluation]], seconds: float) -> None:
        pixels = sum(asked.pixels for _, asked in batch)
        stats = self.stats
        stats.batches += 1
        stats.windows += len(batch)
        stats.pixels += pixels
        stats.seconds += seconds
        speed = pixels / max(seconds, 1e-6)
        self._pixels_per_s += (0.2 if self._pixels_per_s else 1.0) * (speed - self._pixels_per_s)
