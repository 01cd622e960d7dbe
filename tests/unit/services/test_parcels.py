"""Arrays between services, in their messages and by way of a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.common.parcels import Parcels
from services.common.store import TENSORS
from services.common.store.folder import FolderStore
from vlmir.errors import InputError, UnavailableError
from vlmir.v1 import image_pb2

ARRAY = np.random.default_rng(0).random((3, 5, 7), np.float32)
SHAPE = (3, None, None)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    made = FolderStore(tmp_path / "store", "vlmir", [], {})
    made.prepare()
    return made


def lying(store: FolderStore, data: bytes, key: str = f"{TENSORS}/one.bin") -> image_pb2.Tensor:
    """A message about bytes in the store."""
    uri = store.put_named(key, data).uri
    return image_pb2.Tensor(dtype=image_pb2.DATA_TYPE_FLOAT32, shape=ARRAY.shape, uri=uri)


@pytest.mark.parametrize(("above", "way"), [(ARRAY.nbytes, "data"), (ARRAY.nbytes - 1, "uri")])
def test_an_array_arrives_either_way(store: FolderStore, above: int, way: str) -> None:
    message = Parcels(store, above=above).send(ARRAY)
    assert message.WhichOneof("content") == way
    elsewhere = Parcels(store, above=0)
    assert np.array_equal(elsewhere.receive(message, shape=SHAPE, name="pixels"), ARRAY)
    elsewhere.drop(message)
    if way == "uri":
        with pytest.raises(UnavailableError, match="same"):
            elsewhere.receive(message, shape=SHAPE, name="pixels")


def test_two_alike_lie_apart(store: FolderStore) -> None:
    """One of them may be dropped before the other arrives."""
    parcels = Parcels(store)
    first, second = parcels.send(ARRAY), parcels.send(ARRAY)
    parcels.drop(first)
    assert np.array_equal(parcels.receive(second, shape=SHAPE, name="pixels"), ARRAY)


def test_without_a_store_all_travels_in_messages(store: FolderStore) -> None:
    message = Parcels().send(ARRAY)
    assert message.WhichOneof("content") == "data"
    Parcels().drop(message)
    with pytest.raises(InputError, match="has none"):
        Parcels().receive(lying(store, ARRAY.tobytes()), shape=SHAPE, name="pixels")


def test_a_store_that_fails_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    broken = FolderStore(tmp_path / "store", "vlmir", [], {})
    message = Parcels(broken).send(ARRAY)
    assert np.array_equal(Parcels().receive(message, shape=SHAPE, name="pixels"), ARRAY)


def test_only_arrays_of_the_right_size_are_read(store: FolderStore) -> None:
    parcels = Parcels(store)
    for data in (ARRAY.tobytes() + b"\0", ARRAY.tobytes()[:-1]):
        with pytest.raises((InputError, UnavailableError)):
            parcels.receive(lying(store, data), shape=SHAPE, name="pixels")


def test_nothing_but_arrays_is_read(store: FolderStore) -> None:
    for message in (
        lying(store, ARRAY.tobytes(), "results/one.bin"),
        image_pb2.Tensor(
            dtype=image_pb2.DATA_TYPE_FLOAT32, shape=ARRAY.shape, uri="s3://other/tensors/one.bin"
        ),
        image_pb2.Tensor(
            dtype=image_pb2.DATA_TYPE_FLOAT32, shape=ARRAY.shape, uri="s3://vlmir/tensors/../a"
        ),
    ):
        with pytest.raises(InputError):
            Parcels(store).receive(message, shape=SHAPE, name="pixels")
