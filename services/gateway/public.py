"""What callers may hear of the upstream's own errors: nothing of its insides, such as the addresses of its store."""

from __future__ import annotations

import logging

from google.rpc import code_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from vlmir.errors import ReleaseError

__all__ = ["public"]

log = logging.getLogger("vlmir.gateway")

_SENTENCES = {
    code_pb2.UNAVAILABLE: "a part of the restorer cannot be reached at present; try again soon",
    code_pb2.FAILED_PRECONDITION: "this server's weights are not in order; its log tells more about request {id}",
    code_pb2.INTERNAL: "internal error; the server's log tells more about request {id}",
}
_HARMLESS = (ReleaseError.__name__,)
"""Errors whose sentence names releases, which the caller may know, and nothing else."""


def public(status: Status, request_id: str) -> Status:
    """The status with a sentence for everybody; what it replaces stands in the log.

    Faults of the caller keep their sentence: it says how to mend them.

    Args:
        status: Of the upstream.
        request_id: Of the call.
    """
    sentence = _SENTENCES.get(status.code, "").format(id=request_id)
    if not sentence or _reason(status) in _HARMLESS or status.message == sentence:
        return status
    log.warning("request %s: not told to the caller: %r", request_id, status.message[:2000])
    return Status(code=status.code, message=sentence, details=status.details)


def _reason(status: Status) -> str:
    found = ErrorInfo()
    return next((found.reason for detail in status.details if detail.Unpack(found)), "")
