"""Computations that callers join, at every moment of theirs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from services.restorer.flights import Flights
from vlmir.errors import DeadlineError


async def heard(
    flights: Flights[str], gate: asyncio.Event, *, deadline: float | None = None
) -> list[str]:
    async def start() -> AsyncGenerator[str, None]:
        yield "progress"
        yield "result"
        await gate.wait()

    return [item async for item in flights.join("key", start, deadline=deadline)]


def test_who_joins_after_the_result_gets_it() -> None:
    async def test() -> None:
        flights, gate = Flights[str](), asyncio.Event()
        first = asyncio.create_task(heard(flights, gate))
        await asyncio.sleep(0.01)
        late = asyncio.create_task(heard(flights, gate))
        await asyncio.sleep(0.01)
        gate.set()
        assert await first == ["progress", "result"]
        assert await late == ["result"]

    asyncio.run(test())


def test_who_joins_between_the_end_and_its_being_noticed_gets_the_result() -> None:
    async def test() -> None:
        flights, gate = Flights[str](), asyncio.Event()
        first = asyncio.create_task(heard(flights, gate))
        await asyncio.sleep(0.01)
        gate.set()
        late: list[asyncio.Task[list[str]]] = []
        for _ in range(6):  # turns of the loop, in one of which the computation ends
            late.append(asyncio.create_task(heard(flights, gate)))
            await asyncio.sleep(0)
        assert await first == ["progress", "result"]
        for task in late:
            assert (await task)[-1] == "result"

    asyncio.run(test())


def test_who_joins_when_the_time_of_another_has_just_ended_begins_anew() -> None:
    async def test() -> None:
        flights, gate, begun = Flights[str](), asyncio.Event(), 0

        async def start() -> AsyncGenerator[str, None]:
            nonlocal begun
            begun += 1
            yield "progress"
            if begun == 1:
                await gate.wait()
                raise DeadlineError("late")
            yield "result"

        async def joined() -> list[str]:
            return [item async for item in flights.join("key", start, deadline=None)]

        first = asyncio.create_task(joined())
        await asyncio.sleep(0.01)
        gate.set()
        late: list[asyncio.Task[list[str]]] = []
        for _ in range(6):
            late.append(asyncio.create_task(joined()))
            await asyncio.sleep(0)
        with pytest.raises(DeadlineError):
            await first
        for task in late:
            assert (await task)[-1] == "result"

    asyncio.run(test())


def test_what_is_there_is_given_to_who_is_late() -> None:
    async def test() -> None:
        flights, gate = Flights[str](), asyncio.Event()
        first = asyncio.create_task(heard(flights, gate))
        await asyncio.sleep(0.01)
        items = flights.join("key", lambda: pytest.fail("begun"), deadline=time.monotonic() - 1)
        assert await anext(items) == "result"
        with pytest.raises(DeadlineError):
            await anext(items)
        gate.set()
        await first

    asyncio.run(test())
