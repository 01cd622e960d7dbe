"""What the caller is told when the upstream fails: never its traceback, address or other insides."""

from __future__ import annotations

import logging

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from services.common.errors import from_details, to_status
from vlmir.errors import (
    DeadlineError,
    LimitError,
    OverloadedError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)

__all__ = ["answer"]

log = logging.getLogger("vlmir.gateway")

_RETRY_S = 1.0
# Ray's words when a replica ends under a call; a new one takes its place.
_LOST = "actor died"


def answer(error: grpc.aio.AioRpcError, request_id: str) -> Status:
    """The status for the caller.

    The upstream's own errors are passed on with all their details, whether they came beside the status or in its text.
    All others stem from gRPC or Ray: they are logged, and told in our words.

    Args:
        error: What the call to the upstream raised.
        request_id: Of the call.
    """
    code, text = error.code(), error.details() or ""
    own = _beside(error) or from_details(text)
    if own is not None and own.code == code.value[0]:
        return own
    log.warning("request %s: the upstream gave %s %r", request_id, code.name, text[:2000])
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Status(code=code.value[0], message="this server's restorer has no such method")
    return to_status(_in_our_words(code, text), request_id)


def _beside(error: grpc.aio.AioRpcError) -> Status | None:
    try:
        return rpc_status.from_call(error)
    except (ValueError, DecodeError):  # it contradicts the status
        return None


def _in_our_words(code: grpc.StatusCode, text: str) -> VlmirError:
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(
                "the time ran out; grant more of it, ask for fewer steps, or raise the gateway's --limit-s"
            )
        case grpc.StatusCode.CANCELLED:
            return RestorationCancelled("the restorer cancelled the call; try again")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in text:
            return LimitError(
                "the restorer takes no messages of this size; see its Info for limits"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return OverloadedError(
                f"the restorer is full; try again in {_RETRY_S:.0f} s", retry_after_s=_RETRY_S
            )
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.NOT_FOUND:
            return UnavailableError("the restorer cannot be reached at present; try again soon")
        case _ if _LOST in text:
            return UnavailableError("the restorer was replaced while it worked; try again")
        case _:
            return VlmirError(text)
