"""The request's id is found in the bytes of a message that is not parsed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.messages import reader, text_field
from vlmir.v1 import image_pb2, restorer_pb2

METHODS = restorer_pb2.DESCRIPTOR.services_by_name["RestorerService"].methods_by_name
NUMBER = restorer_pb2.RestoreRequest.DESCRIPTOR.fields_by_name["request_id"].number


@given(
    data=st.binary(max_size=300),
    request_id=st.text(max_size=20),
    seed=st.integers(-(2**63), 2**63 - 1),
    budget=st.one_of(st.none(), st.integers(0, 2**62)),
    realism=st.floats(0, 1, width=32),
)
def test_it_is_what_protobuf_says(
    data: bytes, request_id: str, seed: int, budget: int | None, realism: float
) -> None:
    message = restorer_pb2.RestoreRequest(
        image=image_pb2.ImageSource(data=data),
        options=restorer_pb2.RestoreOptions(seed=seed, realism=realism),
        request_id=request_id,
        time_budget_ms=budget,
        store_result=True,
    )
    serialised = message.SerializeToString()
    assert text_field(serialised, NUMBER) == request_id
    assert text_field(serialised + b"\x09" + bytes(8) + b"\x0d" + bytes(4), NUMBER) == request_id


@given(st.binary(max_size=60), st.integers(1, 20))
def test_no_bytes_whatever_make_it_fail(data: bytes, number: int) -> None:
    assert isinstance(text_field(data, number), str)


def test_the_last_of_several_counts() -> None:
    first = restorer_pb2.RestoreRequest(request_id="first").SerializeToString()
    second = restorer_pb2.RestoreRequest(request_id="second").SerializeToString()
    assert text_field(first + second, NUMBER) == "second"


def test_each_method_knows_where_to_look() -> None:
    data = restorer_pb2.RestoreStreamRequest(previews=True, request_id="r-1").SerializeToString()
    passed = reader(METHODS["RestoreStream"])(data)
    assert (passed.request_id, passed.ByteSize()) == ("r-1", len(data))
    assert passed.data is data
    assert reader(METHODS["Info"])(b"").request_id == ""
