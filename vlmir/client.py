"""`RestorationClient`: restoring on a server, with the library's own types and errors."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

import vlmir.errors
from vlmir.errors import (
    BundleError,
    DeadlineError,
    InputError,
    LimitError,
    OptionError,
    OverloadedError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)
from vlmir.formats import format_of_suffix
from vlmir.image import read_file
from vlmir.image.sniff import sniff_format
from vlmir.pipeline import Report, RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

__all__ = ["ClientProgress", "ClientRestoration", "RestorationClient", "ServerInfo"]

_BY_CODE: Mapping[grpc.StatusCode, type[VlmirError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.FAILED_PRECONDITION: BundleError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: RestorationCancelled,
}
_DEFAULT_DELAY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ClientProgress:
    """How far a restoration has come."""

    step: int
    """Whole steps done, 0 to `steps`."""

    steps: int
    """Steps in all."""

    share: float
    """Share of the computation that is done, above 0, at most 1."""

    preview: bytes | None
    """A small JPEG of the picture so far, after a whole step, if asked for."""


@dataclass(frozen=True, kw_only=True)
class ClientRestoration:
    """A restored picture, still encoded, and how it came about."""

    image_bytes: bytes
    """The file as the server encoded it."""

    report: Report
    """The report, as the library gives it."""

    def save(self, path: str | Path) -> None:
        """Write the file as it came.

        Raises:
            OptionError: The suffix of ``path`` says another format than the file has; nothing is written.
        """
        path, kind = Path(path), sniff_format(self.image_bytes)
        if format_of_suffix(path) != kind:
            raise OptionError(
                f"The server sent {kind}, which {path} would not say; give the name a suffix of {kind}, or ask for "
                "another format with RestoreOptions(format=…)."
            )
        path.write_bytes(self.image_bytes)


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server says about itself."""

    release: str
    """Release of the weights."""

    digests: dict[str, str]
    """SHA-256 of each part of the weights."""

    device: str
    """Where it computes."""

    version: str
    """Version of its code."""

    max_image_bytes: int
    """Largest picture file, bytes."""

    max_image_pixels: int
    """Largest picture, width times height."""

    queue_depth: int
    """Requests admitted and not finished."""

    queue_capacity: int
    """Requests admitted at most."""

    labels: tuple[str, ...]
    """Degradation labels it knows."""

    solvers: tuple[str, ...]
    """Solvers it knows."""


class RestorationClient:
    """A connection to a restoration server; use it as a context manager.

    Every method raises the library's errors: `InputError` and its kin for what the caller sent,
    `OverloadedError` with a delay for a full queue, `UnavailableError` when there is no server,
    `DeadlineError` when the time ran out.

    Args:
        address: ``host:port`` of the server.
        timeout_s: Seconds a call may take unless it says otherwise; None for no limit.
    """

    def __init__(self, address: str, *, timeout_s: float | None = 300.0) -> None:
        # The server bounds what comes in; what goes out can be far bigger than gRPC's 4 MiB.
        sizes = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=sizes)
        self._stub = RestorerServiceStub(self._channel)
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls still running are cancelled."""
        self._channel.close()

    def restore(
        self,
        image: bytes | Path,
        options: RestoreOptions | None = None,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> ClientRestoration:
        """Restore one picture.

        Args:
            image: A whole image file, or its path.
            options: How; None for the defaults.
            timeout_s: Seconds it may take; None for the client's.
            request_id: Name of the call in the server's log; None for a new one.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        request = restorer_pb2.RestoreRequest(**_fields(image, options, timeout_s, request_id))
        try:
            return _restoration(self._stub.Restore(request, timeout=timeout_s).result)
        except grpc.RpcError as error:
            raise _translated(error) from error

    def stream(
        self,
        image: bytes | Path,
        options: RestoreOptions | None = None,
        *,
        on_progress: Callable[[ClientProgress], object],
        previews: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> ClientRestoration:
        """Restore one picture and hear how far it is.

        Args:
            image: A whole image file, or its path.
            options: How; None for the defaults.
            on_progress: Called after each tile of each step; an exception it raises cancels the call.
            previews: True to get a preview after each whole step.
            timeout_s: Seconds it may take; None for the client's.
            request_id: Name of the call in the server's log; None for a new one.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        request = restorer_pb2.RestoreStreamRequest(
            previews=previews, **_fields(image, options, timeout_s, request_id)
        )
        call = self._stub.RestoreStream(request, timeout=timeout_s)
        replies = iter(call)
        try:
            while (reply := _received(replies)).HasField("progress"):
                on_progress(_progress(reply.progress))
            return _restoration(reply.result)
        finally:
            call.cancel()  # no effect on a call that is over

    def info(self, *, timeout_s: float = 10.0) -> ServerInfo:
        """What the server says about itself."""
        request = restorer_pb2.RestorerServiceInfoRequest()
        try:
            reply = self._stub.Info(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _translated(error) from error
        service = reply.service
        return ServerInfo(
            release=service.release,
            digests=dict(service.digests),
            device=service.device,
            version=service.version,
            max_image_bytes=service.limits.max_image_bytes,
            max_image_pixels=service.limits.max_image_pixels,
            queue_depth=service.queue_depth,
            queue_capacity=service.queue_capacity,
            labels=tuple(reply.labels),
            solvers=tuple(reply.solvers),
        )


def _fields(
    image: bytes | Path,
    options: RestoreOptions | None,
    timeout_s: float | None,
    request_id: str | None,
) -> dict[str, Any]:
    data = image if isinstance(image, bytes) else read_file(image)
    return {
        "image": image_pb2.ImageSource(data=data),
        "options": _options(options or RestoreOptions()),
        "request_id": request_id or uuid.uuid4().hex,
        "time_budget_ms": None if timeout_s is None else round(timeout_s * 1e3),
    }


def _options(options: RestoreOptions) -> restorer_pb2.RestoreOptions:
    """The message; fields that are None stay unset and mean the server's default."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    if options.format is not None:
        values["format"] = f"IMAGE_FORMAT_{options.format.upper()}"
    try:
        return restorer_pb2.RestoreOptions(**values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"An option does not fit its type: {error}") from error


def _received(
    replies: Iterator[restorer_pb2.RestoreStreamResponse],
) -> restorer_pb2.RestoreStreamResponse:
    # Apart from the loop, so that only the call's errors are translated, not the callback's.
    try:
        return next(replies)
    except grpc.RpcError as error:
        raise _translated(error) from error


def _progress(message: image_pb2.Progress) -> ClientProgress:
    preview = message.preview.data if message.HasField("preview") else None
    return ClientProgress(
        step=message.step, steps=message.steps, share=message.share, preview=preview
    )


def _restoration(message: restorer_pb2.RestoreResult) -> ClientRestoration:
    report = message.report
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(Report)}
    for name, value in values.items():
        if isinstance(value, Mapping):
            values[name] = dict(value)
    values["warnings"] = tuple(report.warnings)
    values["caption"] = report.caption or None
    return ClientRestoration(image_bytes=message.image.data, report=Report(**values))


def _translated(error: grpc.RpcError) -> VlmirError:
    """The library's error for a failed call.

    The server names its own errors; a status without a name comes from gRPC or a proxy between.
    """
    call = cast(grpc.Call, error)
    message = call.details() or call.code().name
    name, delay_s = _details(call)
    if name in vlmir.errors.__all__:
        kind = getattr(vlmir.errors, name)
    elif call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        kind = LimitError if "larger than max" in message else OverloadedError
    else:
        kind = _BY_CODE.get(call.code(), VlmirError)
    if kind is OverloadedError:
        return OverloadedError(message, retry_after_s=delay_s)
    return cast(VlmirError, kind(message))


def _details(call: grpc.Call) -> tuple[str, float]:
    """Name of the server's exception ("" if it gave none) and the delay before a new try."""
    name, delay_s = "", _DEFAULT_DELAY_S
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        info, retry = ErrorInfo(), RetryInfo()
        if detail.Unpack(info) and info.domain == "vlmir":
            name = info.reason
        elif detail.Unpack(retry):
            delay_s = retry.retry_delay.ToNanoseconds() / 1e9
    return name, delay_s
