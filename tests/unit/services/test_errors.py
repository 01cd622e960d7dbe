"""The table from the library's errors to statuses."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from services.common.errors import status_code, to_status
from vlmir import errors


def details(status: Status) -> dict[str, object]:
    found: dict[str, object] = {}
    for detail in status.details:
        for kind in (ErrorInfo, RequestInfo, RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.__name__] = message
    return found


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ImageError("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.LimitError("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.OptionError("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.BundleError("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.UnavailableError("x"), grpc.StatusCode.UNAVAILABLE),
        (errors.ReleaseError("x"), grpc.StatusCode.UNAVAILABLE),
        (errors.OverloadedError("x", retry_after_s=1), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.DeadlineError("x"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.RestorationCancelled("x"), grpc.StatusCode.CANCELLED),
        (errors.VlmirError("x"), grpc.StatusCode.INTERNAL),
        (KeyError("x"), grpc.StatusCode.INTERNAL),
    ],
)
def test_code_of_each_error(error: Exception, code: grpc.StatusCode) -> None:
    assert status_code(error) is code


def test_the_table_knows_the_whole_tree() -> None:
    # VlmirError's own INTERNAL is for the root alone.
    for name in set(errors.__all__) - {"VlmirError"}:
        kind = getattr(errors, name)
        error = kind("x", retry_after_s=1) if kind is errors.OverloadedError else kind("x")
        assert status_code(error) is not grpc.StatusCode.INTERNAL, name


def test_status_names_the_error_and_the_request() -> None:
    status = to_status(errors.LimitError("Too big."), "r1")
    assert status.message == "Too big."
    found = details(status)
    assert found["ErrorInfo"] == ErrorInfo(reason="LimitError", domain="vlmir")
    assert found["RequestInfo"] == RequestInfo(request_id="r1")
    assert "RetryInfo" not in found


def test_overload_says_when_to_come_back() -> None:
    retry = details(to_status(errors.OverloadedError("full", retry_after_s=2.5), "r"))["RetryInfo"]
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToNanoseconds() == 2_500_000_000


def test_what_cannot_be_reached_may_be_tried_again() -> None:
    retry = details(to_status(errors.UnavailableError("gone"), "r"))["RetryInfo"]
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToNanoseconds() == 1_000_000_000
    assert "RetryInfo" not in details(to_status(errors.ReleaseError("old"), "r"))


def test_an_unexpected_error_keeps_its_words_to_the_log() -> None:
    status = to_status(KeyError("/secret/path"), "r9")
    assert "secret" not in str(status)
    assert "r9" in status.message


@pytest.mark.parametrize("character", ["x", "%", "é", "\U0001f600", "\ud800"])
def test_a_sentence_that_quotes_a_caller_at_length_still_fits_beside_the_status(
    character: str,
) -> None:
    status = to_status(errors.OptionError(f"Unknown solver {character * 20_000}"), "r1")
    assert status.message.startswith("Unknown solver ") and status.message.endswith(" …")
    # gRPC sends it twice: each byte as up to three, and in base64 with the details.
    assert 3 * len(status.message.encode()) + 4 / 3 * status.ByteSize() < 8192
