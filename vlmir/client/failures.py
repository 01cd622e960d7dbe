"""From a failed call to the library's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

import vlmir.errors
from vlmir.errors import (
    BundleError,
    DeadlineError,
    InputError,
    LimitError,
    OverloadedError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)

__all__ = ["LostError", "cut_off", "translated"]

_BY_CODE: Mapping[grpc.StatusCode, type[VlmirError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.FAILED_PRECONDITION: BundleError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: RestorationCancelled,
    grpc.StatusCode.UNAUTHENTICATED: InputError,
    grpc.StatusCode.PERMISSION_DENIED: InputError,
}
_DEFAULT_DELAY_S = 1.0
_REPLICA_DIED = "actor died"


class LostError(UnavailableError):
    """What worked on the call is gone, and another may take it up: a new try is sensible soon.

    Args:
        message: What happened.
        retry_after_s: Seconds after which to try.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.3) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def translated(error: grpc.RpcError, address: str, *, begun: bool = False) -> VlmirError:
    """The library's error for a failed call.

    The server names its own errors; a status without a name comes from gRPC or a proxy between.

    Args:
        error: What gRPC raised.
        address: The server's.
        begun: Whether replies had come: gRPC itself then makes no new try.
    """
    call = cast(grpc.Call, error)
    message = call.details() or call.code().name
    name, delay_s = _details(call)
    if name in vlmir.errors.__all__:
        kind = getattr(vlmir.errors, name)
        if begun and kind is UnavailableError:  # the server has lost what worked behind it
            return LostError(message, retry_after_s=delay_s)
    elif call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        kind = LimitError if "larger than max" in message else OverloadedError
    else:
        kind = _BY_CODE.get(call.code(), VlmirError)
        # Ray Serve's word for a replica that was killed at work.
        died = call.code() is grpc.StatusCode.INTERNAL and _REPLICA_DIED in message
        if died or kind is UnavailableError:
            message = f"The server at {address} does not answer; see that it runs ({message})."
            kind = LostError if died or begun else kind
    if kind is OverloadedError:
        return OverloadedError(message, retry_after_s=delay_s)
    return cast(VlmirError, kind(message))


def cut_off(address: str) -> LostError:
    """The error for a stream that ended well, and without a result.

    Args:
        address: The server's.
    """
    return LostError(f"The server at {address} ended the call without a result; try again.")


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
