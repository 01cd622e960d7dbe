"""Requests that are passed on as they came: only their id is looked for, nothing is copied or parsed."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.descriptor import MethodDescriptor

__all__ = ["Passed", "reader", "text_field"]

_LENGTH_GIVEN = 2


class Passed:
    """A request's bytes.

    Args:
        data: As they came.
        request_id: What the message calls itself; empty if it does not.
    """

    __slots__ = ("data", "request_id")

    def __init__(self, data: bytes, request_id: str = "") -> None:
        self.data, self.request_id = data, request_id

    def ByteSize(self) -> int:
        """Its size, bytes."""
        return len(self.data)


def reader(method: MethodDescriptor) -> Callable[[bytes], Passed]:
    """Makes :class:`Passed` of the requests of ``method``."""
    field = method.input_type.fields_by_name.get("request_id")
    if field is None:
        return Passed
    number = field.number
    return lambda data: Passed(data, text_field(data, number))


def text_field(data: bytes, number: int) -> str:
    """The text in a field of a serialised message; empty where it is not set, or the message is broken.

    Args:
        data: The message.
        number: Of the field.
    """
    found, at = b"", 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            start, at = _skip(data, at, key & 7)
            if key >> 3 == number and key & 7 == _LENGTH_GIVEN:
                found = data[start:at]
        return found.decode()
    except (IndexError, ValueError):
        return ""


def _skip(data: bytes, at: int, kind: int) -> tuple[int, int]:
    """Where the value at ``at`` begins and ends."""
    match kind:
        case 0:  # varint
            return at, _varint(data, at)[1]
        case 1:  # 64 bits
            return at, at + 8
        case 2:  # _LENGTH_GIVEN
            length, at = _varint(data, at)
            return at, at + length
        case 5:  # 32 bits
            return at, at + 4
        case _:
            raise ValueError(f"unknown wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("no number is that long")
