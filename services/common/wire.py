"""Between messages and the library's types, seen from a server."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from services.common.store import Store
from vlmir.errors import InputError, OptionError, UnavailableError
from vlmir.image import Image, encode
from vlmir.image.sniff import sniff_format
from vlmir.pipeline import Progress, Report, Restoration, RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2, sampler_pb2

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Delivery",
    "image_bytes",
    "preview_message",
    "report_message",
    "restore_options",
    "restore_replies",
    "thinned",
]

Planes = TypeVar("Planes", npt.NDArray[np.float32], "Tensor")

_FORMATS: dict[str, image_pb2.ImageFormat.ValueType] = {
    "png": image_pb2.IMAGE_FORMAT_PNG,
    "jpeg": image_pb2.IMAGE_FORMAT_JPEG,
    "webp": image_pb2.IMAGE_FORMAT_WEBP,
    "tiff": image_pb2.IMAGE_FORMAT_TIFF,
}
_PREVIEW_SIDE = 1024
_PREVIEW_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How a result gets to its caller: in the reply, or by a link to the store."""

    store: Store
    asked: bool
    """Whether the caller asked for a link."""

    inline_bytes: int
    """A bigger file goes to the store unasked, if callers elsewhere can read there."""

    link_s: int
    """Seconds for which the link holds."""

    def by_link(self, size: int) -> bool:
        """Whether a file of ``size`` bytes goes to the store."""
        return self.asked or (self.store.remote and size > self.inline_bytes)


def image_bytes(
    source: image_pb2.ImageSource, store: Store | None = None, *, max_bytes: int = 0
) -> bytes:
    """The picture's file; blocks while it is fetched from the store.

    Args:
        source: The picture, or where it lies.
        store: Where it may lie; None: nowhere.
        max_bytes: The most to fetch.

    Raises:
        InputError: No picture was sent, or it lies where this server cannot look.
        LimitError: It lies in the store and is too big.
        UnavailableError: The store cannot be reached.
    """
    match source.WhichOneof("source"):
        case "data":
            return source.data
        case "uri":
            if store is None:
                raise InputError(
                    "This server has no object store; send the picture's bytes in `data`."
                )
            return store.get(source.uri, max_bytes)
        case _:
            raise InputError("No picture was sent; set `image.data` to the bytes of an image file.")


def restore_options(
    message: restorer_pb2.RestoreOptions | sampler_pb2.SampleOptions,
) -> RestoreOptions:
    """The options; fields left unset take the library's defaults.

    Those of a sampler have the same names and meanings as those of Restore, of which they are a part.

    Raises:
        OptionError: A value is unknown or out of range.
    """
    given: dict[str, Any] = {
        # 0.1 travels as binary32 0.10000000149; the shortest decimal is what the caller wrote.
        field.name: float(str(np.float32(value))) if isinstance(value, float) else value
        for field, value in message.ListFields()
    }
    wanted = given.pop("format", image_pb2.IMAGE_FORMAT_UNSPECIFIED)
    if wanted != image_pb2.IMAGE_FORMAT_UNSPECIFIED:
        given["format"] = _format_name(wanted)
    return RestoreOptions(**given)


def _format_name(wanted: int) -> str:
    for name, number in _FORMATS.items():
        if number == wanted:
            return name
    raise OptionError(f"Unknown image format {wanted}; choose one of {', '.join(_FORMATS)}.")


def restore_replies(
    stream: Generator[Progress, None, Restoration], delivery: Delivery | None = None
) -> Generator[restorer_pb2.RestoreStreamResponse, None, None]:
    """The replies to a request: progress after each window of each step, then the result.

    Closing this generator closes ``stream``.

    Args:
        stream: The restoration.
        delivery: Whether the result goes to the store; None: it goes into the reply.
    """
    restoration = yield from _progress_replies(stream)
    data = restoration.encode()
    kind = sniff_format(data)  # the caller may have asked for another than the picture came in
    report = report_message(restoration.report)
    image = image_pb2.EncodedImage(
        format=_FORMATS[kind], width=restoration.image.width, height=restoration.image.height
    )
    if delivery is None or not delivery.by_link(len(data)):
        image.data = data
    else:
        try:
            _store(image, data, f"image/{kind}", delivery)
        except UnavailableError as error:  # the work is done: better a big message than none
            image.data = data
            report.warnings.append(f"The result came in the reply, not by link: {error}")
    result = restorer_pb2.RestoreResult(image=image, report=report)
    yield restorer_pb2.RestoreStreamResponse(result=result)


def _store(
    image: image_pb2.EncodedImage, data: bytes, content_type: str, delivery: Delivery
) -> None:
    stored = delivery.store.put(data, content_type)
    image.uri = delivery.store.link(stored.uri, delivery.link_s)
    image.store_uri, image.sha256, image.size = stored.uri, stored.sha256 or "", stored.size


def _progress_replies(
    stream: Generator[Progress, None, Restoration],
) -> Generator[restorer_pb2.RestoreStreamResponse, None, Restoration]:
    try:
        while True:
            progress = next(stream)
            message = image_pb2.Progress(
                step=progress.step, steps=progress.steps, share=progress.share
            )
            if progress.preview is not None:
                message.preview.CopyFrom(preview_message(progress.preview))
            yield restorer_pb2.RestoreStreamResponse(progress=message)
    except StopIteration as end:
        restoration: Restoration = end.value
        return restoration
    finally:
        stream.close()


def preview_message(pixels: npt.NDArray[np.float32]) -> image_pb2.EncodedImage:
    """A JPEG of ``pixels`` (H×W×3, 0…1), thinned out to at most 1024 pixels a side."""
    small = thinned(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    image = Image(pixels=np.ascontiguousarray(small), format="jpeg")
    return image_pb2.EncodedImage(
        format=image_pb2.IMAGE_FORMAT_JPEG,
        width=image.width,
        height=image.height,
        data=encode(image, quality=_PREVIEW_QUALITY),
    )


def thinned(planes: Planes) -> Planes:
    """A view of ``planes`` (…×H×W) with at most 1024 pixels a side.

    Every n-th pixel is taken: a preview goes out at each step, and must cost next to nothing.
    """
    stride = math.ceil(max(planes.shape[-2:]) / _PREVIEW_SIDE)
    return planes[..., ::stride, ::stride]


def report_message(report: Report) -> restorer_pb2.Report:
    """The report; the message has the same fields."""
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    return restorer_pb2.Report(**values)
