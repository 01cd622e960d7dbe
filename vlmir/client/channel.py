"""How a client connects and tries again: options of the channel, TLS, and the time a call has."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from vlmir.client.failures import LostError
from vlmir.errors import DeadlineError, OptionError, OverloadedError
from vlmir.v1 import restorer_pb2

__all__ = ["TLS", "Budget", "channel_credentials", "channel_options"]

_SERVICE = restorer_pb2.DESCRIPTOR.services_by_name["RestorerService"].full_name
_MOST_TRIES = 4
# gRPC sends again only what it still holds: what goes inline, options and framing.
_KEPT_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class TLS:
    """An encrypted connection."""

    ca: Path | None = None
    """Certificates to trust, as PEM; None: the public ones that gRPC brings."""

    certificate: Path | None = None
    """The client's own certificate, as PEM, where the server asks for one; goes with ``key``."""

    key: Path | None = None
    """Private key of ``certificate``, as PEM."""

    def __post_init__(self) -> None:
        """Check that certificate and key come together."""
        if (self.certificate is None) != (self.key is None):
            raise OptionError("A client's certificate and its key go together; give both.")


def channel_options() -> list[tuple[str, Any]]:
    """Options of the channel: sizes, and the tries where no server answers.

    All calls may be made twice, since `Restore` with the same request gives the same picture. An overloaded server is
    asked again by the client itself, since gRPC does not read the delay that the server asks for.
    """
    names = [{"service": _SERVICE}]
    policy = {
        "maxAttempts": _MOST_TRIES,
        "initialBackoff": "0.3s",
        "maxBackoff": "3s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return [
        # The server bounds what comes in; what goes out can be far bigger than gRPC's 4 MiB.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        (
            "grpc.service_config",
            json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]}),
        ),
        ("grpc.per_rpc_retry_buffer_size", _KEPT_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 3000),
    ]


def channel_credentials(tls: TLS | None, token: str | None) -> grpc.ChannelCredentials | None:
    """Credentials of the channel; None for one in plain text.

    Raises:
        OptionError: A file cannot be read, or a token would travel in plain text.
    """
    if tls is None:
        if token is not None:
            raise OptionError(
                "A token travels over TLS only; connect with TLS, or without a token."
            )
        return None
    root, certificate, key = (_content(path) for path in (tls.ca, tls.certificate, tls.key))
    channel = grpc.ssl_channel_credentials(root, key, certificate)
    if token is None:
        return channel
    return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token))


def _content(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}.") from error


class Budget:
    """The time and the tries that one call has.

    Args:
        timeout_s: Seconds; None for no limit.
        tries: How often a server is asked that is overloaded or breaks off, at least 1.
    """

    def __init__(self, timeout_s: float | None, tries: int) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s
        self._tries = tries

    def left(self) -> float | None:
        """Seconds left; None for no limit.

        Raises:
            DeadlineError: There are none.
        """
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError("The time ran out; grant more of it, or ask for fewer steps.")
        return left

    def delay_after(self, error: OverloadedError | LostError) -> float:
        """Seconds to wait before the next try: what the server asks for, and a little more by chance.

        Raises:
            VlmirError: ``error`` itself, where no try is left or no time for it.
        """
        self._tries -= 1
        # By chance, lest all that were refused together come again together.
        delay = error.retry_after_s * random.uniform(1.0, 1.3)
        if self._tries < 1 or (self._end is not None and time.monotonic() + delay >= self._end):
            raise error
        return delay
