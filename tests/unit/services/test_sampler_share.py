"""Who is served next, and who may begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from services.sampler.job import Job
from services.sampler.share import pick, startable
from tests.unit.services.sampler_tools import Watched, task
from vlmir.sampling import DiffusionSampler

SMALL, OTHER, BIG = (16, 16), (24, 16), (64, 64)


@pytest.fixture(scope="module")
def sampler(small_bundle_folder: Path) -> DiffusionSampler:
    return Watched(small_bundle_folder).sampler


def jobs(
    sampler: DiffusionSampler, *sizes: tuple[int, int], clocks: Sequence[int] = ()
) -> list[Job]:
    """Jobs for pictures of these sizes; with clocks they have begun."""
    made = [Job(task(sampler, size=size), lambda event: None, previews=False) for size in sizes]
    for job, clock in zip(made, clocks, strict=False):
        job.begin(clock)
    return made


def picked(waiting: list[Job], pixels: int) -> list[int]:
    batch = pick(waiting, pixels=pixels, take=lambda job: job.take())
    return [waiting.index(job) for job, _ in batch]


def test_the_least_served_come_first_and_only_what_fits_together(sampler: DiffusionSampler) -> None:
    made = jobs(sampler, SMALL, OTHER, SMALL, SMALL, clocks=[300, 200, 100, 400])
    assert picked(made, 1000) == [2, 0, 3]
    assert [job.served for job in made] == [556, 200, 356, 656]
    assert picked(made, 1000) == [1]
    assert picked(made, 1000) == []  # all wait for answers


def test_at_equal_shares_the_smallest_comes_first(sampler: DiffusionSampler) -> None:
    assert picked(jobs(sampler, BIG, SMALL, clocks=[5, 5]), 10_000) == [1]


@pytest.mark.parametrize(("pixels", "count"), [(1, 1), (256, 1), (511, 1), (512, 2), (10_000, 3)])
def test_a_call_has_no_more_pixels_than_it_may_but_one_window(
    sampler: DiffusionSampler, pixels: int, count: int
) -> None:
    assert len(picked(jobs(sampler, SMALL, SMALL, SMALL, clocks=[0, 0, 0]), pixels)) == count


def test_a_job_whose_window_cannot_be_taken_is_left_out(sampler: DiffusionSampler) -> None:
    made = jobs(sampler, SMALL, SMALL, clocks=[0, 1])
    batch = pick(made, pixels=1000, take=lambda job: None if job is made[0] else job.take())
    assert [job for job, _ in batch] == [made[1]]


def begins(made: list[Job], *, slots: int = 4, room: int = 10_000) -> list[int]:
    return [made.index(job) for job in startable(made, slots=slots, big=1000, room=room)]


def test_first_come_first_served_while_slots_are_free(sampler: DiffusionSampler) -> None:
    made = jobs(sampler, SMALL, SMALL, SMALL, clocks=[0])
    assert begins(made, slots=2) == [1]
    assert begins(made, slots=1) == []


def test_big_pictures_leave_half_of_the_slots_to_small_ones(sampler: DiffusionSampler) -> None:
    assert begins(jobs(sampler, BIG, BIG, BIG, SMALL, SMALL)) == [0, 1, 3, 4]
    assert begins(jobs(sampler, BIG, BIG, BIG, SMALL, clocks=[0, 0])) == [3]


def test_big_pictures_have_so_many_pixels_together(sampler: DiffusionSampler) -> None:
    assert begins(jobs(sampler, BIG, BIG, SMALL), room=8191) == [0, 2]
    assert begins(jobs(sampler, BIG, BIG, SMALL), room=8192) == [0, 1, 2]


def test_one_big_picture_may_always_be_under_way(sampler: DiffusionSampler) -> None:
    assert begins(jobs(sampler, BIG, BIG), slots=1, room=1) == [0]
    assert begins(jobs(sampler, SMALL, BIG, clocks=[0]), slots=2, room=1) == [1]
