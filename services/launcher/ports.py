"""Which ports the cluster gets, and whether they are free."""

from __future__ import annotations

import contextlib
import socket

from services.launcher.settings import PREFIX, LauncherSettings
from vlmir.errors import UnavailableError

__all__ = ["choose_ports"]


def choose_ports(settings: LauncherSettings) -> dict[str, int]:
    """Name → port: ``gateway``, ``gateway_metrics`` and so on; 0 has become a free one.

    Raises:
        UnavailableError: One is taken.
    """
    wanted = {name.removesuffix("_port"): port for name, port in settings if name.endswith("_port")}
    with contextlib.ExitStack() as held:  # all at once, so that no two are the same
        return {name: _held(held, name, settings.host, port) for name, port in wanted.items()}


def _held(held: contextlib.ExitStack, name: str, host: str, port: int) -> int:
    place = held.enter_context(socket.socket())
    # What has just been closed counts as free.
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host if name == "gateway" else "127.0.0.1", port))
        # Two sockets that both may reuse an address are told apart only here.
        place.listen()
    except OSError as error:
        variable = f"{PREFIX}{name.upper()}_PORT"
        raise UnavailableError(
            f"port {port} ({name.replace('_', ' ')}) cannot be had: {error.strerror}; free it, or name another with "
            f"{variable}, where 0 takes a free one"
        ) from error
    found: int = place.getsockname()[1]
    return found
