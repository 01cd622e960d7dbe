"""The one table from the library's errors to gRPC statuses.

A status carries ``google.rpc`` details, so that a client can act on more than a sentence:
``ErrorInfo`` (domain ``vlmir``, reason = name of the exception), ``RequestInfo`` (the request id
that stands in the log) and, for overload, ``RetryInfo`` (the delay before a new try).
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from vlmir.errors import (
    BundleError,
    DeadlineError,
    InputError,
    OverloadedError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)

__all__ = ["CODES", "DOMAIN", "status_code", "to_status"]

DOMAIN = "vlmir"

CODES: Mapping[type[VlmirError], grpc.StatusCode] = {
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
    which has the request id.
    """
    code = status_code(error)
    internal = code is grpc.StatusCode.INTERNAL
    message = f"internal error; the server's log tells more about request {request_id}"
    reason = "InternalError" if internal else type(error).__name__
    details: list[Message] = [
        ErrorInfo(reason=reason, domain=DOMAIN),
        RequestInfo(request_id=request_id),
    ]
    if isinstance(error, OverloadedError):
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(retry)
    status = Status(code=code.value[0], message=message if internal else str(error))
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
