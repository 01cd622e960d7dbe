"""Who is served next: equal shares of the network for all pictures, whatever their size."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from services.sampler.job import Job
from vlmir.sweeps import Evaluation

__all__ = ["pick", "startable"]


def startable(jobs: Sequence[Job], *, slots: int, big: int, room: int) -> list[Job]:
    """The waiting jobs that may begin now, first come, first served.

    Big pictures hold half of the slots at most, so that a small one never waits for a big one to end, and no more
    pixels together than there is room for, so that memory does not run out; one of them may always be under way. Where
    they may not begin, small ones overtake them.

    Args:
        jobs: All that are admitted, in the order they came.
        slots: How many may be under way at once.
        big: A picture of more pixels is a big one.
        room: Most pixels of big pictures under way.
    """
    begun = [job for job in jobs if job.begun]
    great = [job.task.size for job in begun if job.task.size > big]
    chosen = list[Job]()
    for job in jobs:
        if len(begun) + len(chosen) == slots:
            break
        if job.begun:
            continue
        size = job.task.size
        if size > big:
            if great and (len(great) >= slots // 2 or sum(great) + size > room):
                continue
            great.append(size)
        chosen.append(job)
    return chosen


def pick(
    jobs: Sequence[Job], *, pixels: int, take: Callable[[Job], Evaluation | None]
) -> list[tuple[Job, Evaluation]]:
    """The evaluations of the next network call: of those jobs that were served least, as many as share its key.

    Args:
        jobs: Those under way.
        pixels: Most pixels in the call; one window is taken even if it has more.
        take: Takes a job's next evaluation; None if that failed.

    Returns:
        Evaluations with their jobs, none if no job has any.
    """
    # At equal shares the smaller picture comes first; the number only keeps the heap from comparing jobs.
    queue = [
        (job.served, job.task.cost, number, job)
        for number, job in enumerate(jobs)
        if job.key is not None
    ]
    heapq.heapify(queue)
    batch = list[tuple[Job, Evaluation]]()
    if not queue or (key := queue[0][3].key) is None:
        return batch
    _, height, width = key
    while queue:
        _, cost, number, job = heapq.heappop(queue)
        if job.key != key:
            continue
        if batch and (len(batch) + 1) * height * width > pixels:
            break
        asked = take(job)
        if asked is None:
            continue
        batch.append((job, asked))
        heapq.heappush(queue, (job.served, cost, number, job))
    return batch
