"""The threads of a store."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from services.restorer.storing import Storing
from tests.unit.services.stores import Late
from vlmir.errors import DeadlineError, UnavailableError


def test_a_store_is_prepared_once_it_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        storing = Storing(store := Late(tmp_path / "store"))
        with pytest.raises(UnavailableError, match="does not answer"):
            await storing.run(lambda: 1, deadline=None)
        async with asyncio.timeout(5):
            while "is tried again when it is needed" not in caplog.text:
                await asyncio.sleep(0.002)
        store.let = True
        assert [await storing.run(lambda: 1, deadline=None) for _ in range(3)] == [1] * 3
        assert store.prepared == 1

    asyncio.run(test())


def test_a_call_that_hangs_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            await Storing().run(lambda: time.sleep(0.2), deadline=began + 0.02)
        assert time.monotonic() - began < 0.15

    asyncio.run(test())
