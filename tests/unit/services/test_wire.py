"""Messages to the library's types and back."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.wire import image_bytes, preview_message, report_message, restore_options
from tests.unit.services.harness import a_report
from vlmir.errors import InputError, OptionError
from vlmir.image import Image, decode
from vlmir.pipeline import RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2


def test_unset_options_are_the_librarys_defaults() -> None:
    assert restore_options(restorer_pb2.RestoreOptions()) == RestoreOptions()


def test_zero_and_false_are_set_not_unset() -> None:
    message = restorer_pb2.RestoreOptions(tile=0, use_caption=False)
    assert restore_options(message) == RestoreOptions(tile=0, use_caption=False)


def test_decimals_survive_binary32() -> None:
    message = restorer_pb2.RestoreOptions(realism=0.1, strength=0.7)
    assert restore_options(message) == RestoreOptions(realism=0.1, strength=0.7)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "tiff"])
def test_formats_go_by_name(name: str) -> None:
    message = restorer_pb2.RestoreOptions(format=f"IMAGE_FORMAT_{name.upper()}")
    assert restore_options(message).format == name


def test_an_unspecified_format_is_the_inputs() -> None:
    message = restorer_pb2.RestoreOptions(format=image_pb2.IMAGE_FORMAT_UNSPECIFIED)
    assert restore_options(message).format is None


def test_a_format_of_the_future_is_refused() -> None:
    message = restorer_pb2.RestoreOptions.FromString(bytes([10 << 3, 99]))
    with pytest.raises(OptionError, match="99"):
        restore_options(message)


def test_a_picture_must_be_there_and_here() -> None:
    assert image_bytes(image_pb2.ImageSource(data=b"x")) == b"x"
    with pytest.raises(InputError, match="No picture"):
        image_bytes(image_pb2.ImageSource())
    with pytest.raises(InputError, match="object store"):
        image_bytes(image_pb2.ImageSource(uri="s3://bucket/key"))


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1), (1, 1)), ((30, 1024), (30, 1024)), ((2050, 31), (684, 11))]
)
def test_previews_are_small_jpegs(shape: tuple[int, int], size: tuple[int, int]) -> None:
    message = preview_message(np.full((*shape, 3), 0.5, np.float32))
    picture = decode(message.data)
    assert (picture.format, picture.height, picture.width) == ("jpeg", *size)
    assert (message.height, message.width) == size


def test_the_report_has_every_field() -> None:
    image = Image(pixels=np.zeros((2, 3, 3), np.float32))
    message = report_message(a_report(RestoreOptions(seed=5), image))
    assert message.seed == 5
    assert dict(message.degradations) == {"noisy": 0.75, "clean": 0.25}
    assert list(message.warnings) == ["no captioner"]
    unset = [field.name for field in message.DESCRIPTOR.fields if not getattr(message, field.name)]
    assert unset == ["tile_size"]  # its value is 0
