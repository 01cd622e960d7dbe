"""Who restores: the weights in this process, or a server. The commands know no difference."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

from vlmir.cli.batch import Tick
from vlmir.cli.files import Job
from vlmir.errors import OptionError

if TYPE_CHECKING:
    from vlmir.client import RestorationClient, ServerInfo
    from vlmir.options import RestoreOptions
    from vlmir.pipeline import Restorer

__all__ = ["Engine", "LocalEngine", "ServerEngine", "connect"]

TOKEN = "VLMIR_TOKEN"
"""Environment variable of the token, which a command line would show to everybody."""


class Engine(Protocol):
    """Restores pictures."""

    def check(self, options: RestoreOptions) -> None:
        """Raise an `OptionError` for options with which no picture could be restored."""

    def restore(
        self, job: Job, options: RestoreOptions, tick: Tick
    ) -> tuple[bytes, Mapping[str, Any]]:
        """The restored file of a job, and its report."""


class LocalEngine:
    """The weights in this process."""

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer

    def check(self, options: RestoreOptions) -> None:
        """Ask the weights."""
        self._restorer.check(options)

    def restore(
        self, job: Job, options: RestoreOptions, tick: Tick
    ) -> tuple[bytes, Mapping[str, Any]]:
        """Restore here."""
        with closing(self._restorer.stream(job.source, options)) as stream:
            while True:
                try:
                    progress = next(stream)
                except StopIteration as end:
                    return end.value.encode(), end.value.report.to_dict()
                tick(progress.share)


class ServerEngine:
    """A server.

    Raises:
        UnavailableError: It does not answer.
    """

    def __init__(self, client: RestorationClient) -> None:
        self._client = client
        self._info: ServerInfo = client.info()

    def check(self, options: RestoreOptions) -> None:
        """Compare with what the server says it knows."""
        _known("solver", options.solver, self._info.solvers)
        _known("degradation", options.degradation, self._info.labels)

    def restore(
        self, job: Job, options: RestoreOptions, tick: Tick
    ) -> tuple[bytes, Mapping[str, Any]]:
        """Restore there."""
        from vlmir.image import read_file

        # One byte more than the server takes is enough for it to refuse the rest.
        data = read_file(job.source, self._info.max_image_bytes + 1)
        restored = self._client.stream(
            data, options, on_progress=lambda progress: tick(progress.share)
        )
        return restored.image_bytes, restored.report.to_dict()


def connect(arguments: Namespace) -> RestorationClient:
    """A client for ``--server``, with the TLS and the token that were chosen.

    Raises:
        OptionError: The certificates cannot be read, or a token would travel in plain text.
    """
    from vlmir.client import TLS, RestorationClient

    tls = TLS(ca=arguments.tls_ca) if arguments.tls or arguments.tls_ca else None
    token = os.environ.get(TOKEN) or None
    if token and tls is None:
        raise OptionError(f"{TOKEN} is sent over TLS only; add --tls or --tls-ca, or unset it.")
    return RestorationClient(arguments.server, timeout_s=arguments.timeout, tls=tls, token=token)


def _known(what: str, name: str | None, names: tuple[str, ...]) -> None:
    if name is not None and name not in names:
        raise OptionError(
            f"The server does not know the {what} {name!r}; choose from {', '.join(names)}."
        )
