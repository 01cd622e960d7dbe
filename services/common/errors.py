"""The one table from the library's errors to gRPC statuses.

A status carries ``google.rpc`` details, so that a client can act on more than a sentence:
``ErrorInfo`` (domain ``vlmir``, reason = name of the exception), ``RequestInfo`` (the request id
that stands in the log) and, for overload and what cannot be reached at present, ``RetryInfo`` (the
delay before a new try).

Ray Serve drops the metadata by which such details travel. A handler there puts :func:`to_details` into the status's
text, from which the gateway makes the details again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from vlmir.errors import (
    BundleError,
    DeadlineError,
    InputError,
    OverloadedError,
    ReleaseError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)

__all__ = [
    "CODES",
    "DOMAIN",
    "UnauthenticatedError",
    "from_details",
    "status_code",
    "to_details",
    "to_status",
]

DOMAIN = "vlmir"

_BACK_S = 1.0
"""Seconds after which it is sensible to try again what could not be reached."""

# A caller takes 8 KiB of metadata with the status: the sentence goes there twice, one byte as up to three.
_MOST_BYTES = 1000

_MACHINE_PART = re.compile(r" \[vlmir:([A-Za-z0-9+/]*={0,2})\]")


class UnauthenticatedError(InputError):
    """The caller did not prove who it is."""


CODES: Mapping[type[VlmirError], grpc.StatusCode] = {
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    # Limits too are INVALID_ARGUMENT: the same picture would be refused again, whenever it comes.
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    BundleError: grpc.StatusCode.FAILED_PRECONDITION,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    RestorationCancelled: grpc.StatusCode.CANCELLED,
    VlmirError: grpc.StatusCode.INTERNAL,
}
"""A class not listed takes the status of its nearest listed base."""


def status_code(error: Exception) -> grpc.StatusCode:
    """The status for ``error``; INTERNAL for anything the library does not raise on purpose."""
    known = (CODES[base] for base in type(error).__mro__ if base in CODES)
    return next(known, grpc.StatusCode.INTERNAL)


def to_status(error: Exception, request_id: str) -> Status:
    """The rich status sent to the caller.

    An unexpected error is said to be one and no more: its words and traceback belong in the log,
    which has the request id. A sentence of more than 1000 bytes, such as one that quotes the caller, is cut.
    """
    code = status_code(error)
    internal = code is grpc.StatusCode.INTERNAL
    message = f"internal error; the server's log tells more about request {request_id}"
    reason = "InternalError" if internal else type(error).__name__
    details: list[Message] = [
        ErrorInfo(reason=reason, domain=DOMAIN),
        RequestInfo(request_id=request_id),
    ]
    if (delay_s := _retry_after_s(error)) is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(delay_s * 1e9))
        details.append(retry)
    status = Status(code=code.value[0], message=_cut(message if internal else str(error)))
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(sentence: str) -> str:
    content = sentence.encode(errors="replace")
    if len(content) <= _MOST_BYTES:
        return content.decode()
    return content[:_MOST_BYTES].decode(errors="ignore") + " …"


def _retry_after_s(error: Exception) -> float | None:
    """Seconds after which the same call may well succeed; None where it will not."""
    match error:
        case OverloadedError():
            return error.retry_after_s
        case ReleaseError():  # the caller must choose another release
            return None
        case UnavailableError():
            return _BACK_S
        case _:
            return None


def to_details(status: Status) -> str:
    """One line of text that carries a whole status: its sentence, then ``" [vlmir:BASE64]"`` for machines.

    Ray cuts the whole at 4096 bytes, which the sentence of :func:`to_status` leaves room in.
    """
    rest = Status(code=status.code, details=status.details)
    machine = base64.b64encode(rest.SerializeToString()).decode()
    return f"{status.message} [vlmir:{machine}]"


def from_details(text: str) -> Status | None:
    """The status that :func:`to_details` put into a text, or None where there is none; what follows it is ignored."""
    found = list(_MACHINE_PART.finditer(text))
    if not found:
        return None
    try:
        status = Status.FromString(base64.b64decode(found[-1][1], validate=True))
    except (ValueError, DecodeError):
        return None
    status.message = text[: found[-1].start()]
    return status
