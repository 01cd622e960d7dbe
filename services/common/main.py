"""The command line of every server: settings, logging, exit status."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp

from services.common.settings import ServerSettings
from services.common.telemetry.logs import configure_logging
from vlmir.errors import VlmirError

__all__ = ["read_settings", "run_service"]

B = TypeVar("B", bound=BaseSettings)
S = TypeVar("S", bound=ServerSettings)


def read_settings(settings_class: type[B]) -> B | None:
    """The settings of command line and environment; None after saying what is wrong with them."""
    try:
        return CliApp.run(settings_class)
    except ValidationError as error:
        for fault in error.errors():
            where = fault["loc"][0] if fault["loc"] else "settings"
            print(f"error: {where}: {fault['msg']}", file=sys.stderr)
        return None


def run_service(settings_class: type[S], serve: Callable[[S], Awaitable[None]]) -> int:
    """Read the settings from command line and environment, and serve until told to stop.

    Returns:
        The exit status: 0 after a graceful stop, 1 when it cannot serve, 2 for bad settings.
    """
    settings = read_settings(settings_class)
    if settings is None:
        return 2
    configure_logging(settings.log_level, settings.log_format)

    async def run() -> None:
        await serve(settings)

    try:
        asyncio.run(run())
    except VlmirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
