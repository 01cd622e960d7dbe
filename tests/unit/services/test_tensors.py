"""Arrays to messages and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.common.tensors import from_message, to_message
from vlmir.errors import InputError, LimitError
from vlmir.v1 import image_pb2


def message(**changes: Any) -> image_pb2.Tensor:
    fields = {"dtype": image_pb2.DATA_TYPE_FLOAT32, "shape": [3, 2, 4], "data": bytes(96)}
    return image_pb2.Tensor(**{name: v for name, v in (fields | changes).items() if v is not None})


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 2, 4)])
def test_arrays_go_and_come_back_the_same(dtype: str, shape: tuple[int, ...]) -> None:
    sent = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    wire = image_pb2.Tensor.FromString(to_message(np.asarray(sent)).SerializeToString())
    got = from_message(wire, shape=shape, dtypes=("uint8", "float16", "float32"))
    assert got.dtype == dtype and got.shape == shape
    assert np.array_equal(got, sent)


def test_layout_and_byte_order_do_not_matter() -> None:
    straight = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    turned = straight.transpose(2, 0, 1).copy().transpose(1, 2, 0)
    assert not turned.flags.c_contiguous
    for array in (turned, straight.astype(">f4")):
        assert np.array_equal(from_message(to_message(array)), straight)


def test_the_array_is_a_view_that_cannot_be_written() -> None:
    got = from_message(message())
    assert not got.flags.writeable and not got.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        got[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": None}, "pixels has no content; set `data`"),
        ({"data": None, "uri": "s3://b/k"}, "object store, and this server has none"),
        ({"dtype": image_pb2.DATA_TYPE_UINT8}, "is of uint8; send it as float32"),
        ({"dtype": image_pb2.DATA_TYPE_UNSPECIFIED}, "of no known type"),
        ({"shape": [2, 4]}, "the shape 3×any×any, not 2×4"),
        ({"shape": [1, 6, 4]}, "not 1×6×4"),
        ({"shape": [3, -2, -4]}, "not 3×-2×-4"),
        ({"shape": [3, 0, 4], "data": b""}, "not 3×0×4"),
        ({"shape": []}, "not scalar"),
        ({"data": bytes(95)}, "has 95 bytes; 3×2×4 of float32 are 96"),
        ({"data": bytes(100)}, "has 100 bytes"),
        ({"data": b""}, "has 0 bytes"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_message(message(**changes), name="pixels")


@pytest.mark.parametrize("shape", [[3, 2, 5], [3, 2**40, 2**40]])
def test_too_many_elements_are_refused_by_their_number(shape: list[int]) -> None:
    with pytest.raises(LimitError, match="at most 24 are taken"):
        from_message(message(shape=shape), most=24)


def test_other_types_do_not_travel() -> None:
    with pytest.raises(InputError, match="float64 cannot be sent; convert it to float32"):
        to_message(np.zeros(2))
