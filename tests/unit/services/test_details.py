"""The agreement by which a whole status travels in a line of text."""

from __future__ import annotations

import pytest
from google.rpc.status_pb2 import Status

from services.common.errors import from_details, to_details, to_status
from vlmir.errors import ImageError, OverloadedError


@pytest.mark.parametrize(
    "error",
    [
        ImageError("The bytes are no image; send PNG, JPEG, WebP or TIFF."),
        ImageError("An odd one [vlmir:xyz], with [vlmir:AAAA] in it."),
        ImageError("Ein Fehler über zwei\nZeilen – 図."),
        ImageError(""),
        OverloadedError("full", retry_after_s=2.5),
    ],
)
def test_a_status_comes_back_whole(error: Exception) -> None:
    status = to_status(error, "r-1")
    text = to_details(status)
    assert text.startswith(status.message)
    assert from_details(text) == status


def test_what_a_server_adds_behind_it_is_dropped() -> None:
    status = to_status(ImageError("no image"), "r-1")
    added = to_details(status) + '\nTraceback: File "/secret/path.py"'
    assert from_details(added) == status


def test_a_very_long_sentence_still_fits() -> None:
    text = to_details(to_status(ImageError("x" * 9000), "r" * 128))
    assert len(text) < 4096
    found = from_details(text)
    assert found is not None and found.message == "x" * 1000 + " …" and len(found.details) == 2


@pytest.mark.parametrize(
    "text", ["", "no image", "no image [vlmir:", "x [vlmir:AAA]", "x [vlmir:////]", "[vlmir:AAAA]"]
)
def test_a_text_without_one_has_none(text: str) -> None:
    assert from_details(text) is None


def test_an_empty_one_is_an_empty_status() -> None:
    assert from_details("x [vlmir:]") == Status(message="x")
