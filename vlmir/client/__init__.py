"""Restoring on a server, with the library's own types and errors; blocking, or for asyncio."""

from __future__ import annotations

from vlmir.client.asynchronous import AsyncRestorationClient
from vlmir.client.blocking import RestorationClient
from vlmir.client.channel import TLS
from vlmir.client.types import ClientProgress, ClientRestoration, ServerInfo

__all__ = [
    "TLS",
    "AsyncRestorationClient",
    "ClientProgress",
    "ClientRestoration",
    "RestorationClient",
    "ServerInfo",
]
