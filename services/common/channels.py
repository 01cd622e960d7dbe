"""Channels to other services: TLS, keepalive, retries, request id and trace; for coroutines and for threads."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import grpc

from services.common.outgoing import aio_interceptors, interceptor
from services.common.security import channel_credentials
from services.common.settings import ChannelSettings
from vlmir.errors import DeadlineError

__all__ = ["connect", "connect_sync", "time_budget_ms"]

_ATTEMPTS = 4
# gRPC forgets a request, and so cannot send it again, that is bigger than this; pictures are.
_RETRY_BUFFER = 1 << 28


def connect(
    address: str, settings: ChannelSettings, *, idempotent: Sequence[str] = ()
) -> grpc.aio.Channel:
    """A channel for coroutines; it connects when it is first used, and again whenever it has to.

    Args:
        address: ``host:port``; or ``dns:///name:port`` or ``ipv4:host:port,host:port``, which may stand for several
            servers. They are called in turn; one that is down is left out.
        settings: Of the channel.
        idempotent: What may safely be called twice: full names of services (``vlmir.v1.SamplerService``) or methods
            (``vlmir.v1.SamplerService/Info``). Where these are UNAVAILABLE they are tried again, within the deadline.

    Raises:
        OptionError: The certificates are unfit.
    """
    options, credentials = _options(settings, idempotent), channel_credentials(settings)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options, interceptors=aio_interceptors())
    return grpc.aio.secure_channel(address, credentials, options, interceptors=aio_interceptors())


def connect_sync(
    address: str, settings: ChannelSettings, *, idempotent: Sequence[str] = ()
) -> grpc.Channel:
    """A channel for threads, which may share it; see :func:`connect`."""
    options, credentials = _options(settings, idempotent), channel_credentials(settings)
    if credentials is None:
        channel = grpc.insecure_channel(address, options)
    else:
        channel = grpc.secure_channel(address, credentials, options)
    return grpc.intercept_channel(channel, interceptor())


def time_budget_ms(deadline: float | None) -> int | None:
    """Whole milliseconds that are left, at least 1, or None without a deadline.

    Args:
        deadline: Reading of ``time.monotonic``, or None.

    Raises:
        DeadlineError: It has passed.
    """
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineError("the time ran out before the next stage; grant more of it")
    return max(1, int(left * 1e3))


def _options(settings: ChannelSettings, idempotent: Sequence[str]) -> list[tuple[str, Any]]:
    return [
        # Servers bound what they take; what they answer is theirs to choose.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", round(settings.keepalive_s * 1e3)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),  # a long computation is a long silence
        # A restarted service is found again at once, not after gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER),
        ("grpc.service_config", json.dumps(_service_config(idempotent))),
    ]


def _service_config(idempotent: Sequence[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if not idempotent:
        return config
    parted = [name.partition("/") for name in idempotent]
    names = [{"service": service, "method": method} for service, _, method in parted]
    policy = {
        "maxAttempts": _ATTEMPTS,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return config | {"methodConfig": [{"name": names, "retryPolicy": policy}]}
