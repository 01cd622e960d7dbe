"""Between the message `Tensor` and NumPy arrays, checked before anything is copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vlmir.errors import InputError, LimitError
from vlmir.v1 import image_pb2

__all__ = ["DTYPES", "Array", "from_message", "to_message"]

Array: TypeAlias = npt.NDArray[Any]

DTYPES: Mapping[str, image_pb2.DataType.ValueType] = MappingProxyType(
    {
        "float32": image_pb2.DATA_TYPE_FLOAT32,
        "float16": image_pb2.DATA_TYPE_FLOAT16,
        "uint8": image_pb2.DATA_TYPE_UINT8,
    }
)
"""The element types that travel, by NumPy's names; little-endian on the wire."""

_MOST_ELEMENTS = 2**31
"""gRPC carries less than 2 GiB in a message, so no more elements than this can be meant."""


def to_message(array: Array) -> image_pb2.Tensor:
    """An array, of any shape and layout, as a message; its elements are copied once.

    Raises:
        InputError: The elements are of a type that does not travel.
    """
    name = array.dtype.name
    if name not in DTYPES:
        raise InputError(f"A tensor of {name} cannot be sent; convert it to {_either(DTYPES)}.")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return image_pb2.Tensor(dtype=DTYPES[name], shape=array.shape, data=little.tobytes())


def from_message(
    message: image_pb2.Tensor,
    *,
    shape: Sequence[int | None] = (3, None, None),
    dtypes: Sequence[str] = ("float32",),
    most: int = _MOST_ELEMENTS,
    name: str = "tensor",
    fetch: Callable[[str, int], bytes] | None = None,
) -> Array:
    """The array in a message: a read-only view of its bytes, checked first.

    Args:
        message: The message.
        shape: Length wanted of each axis; None: any length from 1 on.
        dtypes: Element types taken, keys of ``DTYPES``.
        most: Elements taken at most.
        name: What errors call the array, such as the field's name.
        fetch: Gets the bytes at a URI, of which there are so many; None: arrays in a store are not taken.

    Returns:
        An array of that shape and one of those types, C order, not writeable.

    Raises:
        LimitError: There are more elements than taken.
        InputError: It is missing, lies in a store, or its type, shape or length is not the one wanted.
    """
    match message.WhichOneof("content"):
        case None:
            raise InputError(f"{name} has no content; set `data` to its elements.")
        case "uri" if fetch is None:
            raise InputError(
                f"{name} lies in an object store, and this server has none; send its elements in `data`."
            )
    dtype = _dtype(message, dtypes, name)
    lengths = tuple(message.shape)
    if not _fits(lengths, shape):
        raise InputError(f"{name} must have the shape {_said(shape)}, not {_said(lengths)}.")
    elements = math.prod(lengths)
    if elements > most:
        raise LimitError(
            f"{name} has {elements} elements ({_said(lengths)}), at most {most} are taken; send less."
        )
    size = elements * dtype.itemsize
    data = fetch(message.uri, size) if fetch and message.uri else message.data
    if len(data) != size:
        raise InputError(
            f"{name} has {len(data)} bytes; {_said(lengths)} of {dtype.name} are {size}."
        )
    return np.frombuffer(data, dtype).reshape(lengths)


def _dtype(message: image_pb2.Tensor, taken: Sequence[str], name: str) -> np.dtype[Any]:
    for known in taken:
        if DTYPES[known] == message.dtype:
            return np.dtype(known).newbyteorder("<")
    given = next((known for known, number in DTYPES.items() if number == message.dtype), None)
    said = f"of {given}" if given else f"of no known type (dtype {message.dtype})"
    raise InputError(f"{name} is {said}; send it as {_either(taken)}.")


def _fits(lengths: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(lengths) == len(wanted) and all(
        length >= 1 and want in (None, length) for length, want in zip(lengths, wanted, strict=True)
    )


def _said(shape: Sequence[int | None]) -> str:
    """A shape in words, such as 3×any×any."""
    axes = ("any" if length is None else str(length) for length in shape)
    return "×".join(axes) or "scalar"


def _either(names: Sequence[str] | Mapping[str, Any]) -> str:
    return " or ".join(names)
