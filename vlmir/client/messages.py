"""Between the library's types and messages, seen from a client."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vlmir.client.types import ClientProgress, ClientRestoration, ServerInfo
from vlmir.errors import OptionError
from vlmir.options import RestoreOptions
from vlmir.report import Report
from vlmir.v1 import image_pb2, restorer_pb2

__all__ = ["options_message", "progress", "restoration", "server_info"]


def options_message(options: RestoreOptions) -> restorer_pb2.RestoreOptions:
    """The message; fields that are None stay unset and mean the server's default.

    Raises:
        OptionError: A value is of the wrong type.
    """
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    if options.format is not None:
        values["format"] = f"IMAGE_FORMAT_{options.format.upper()}"
    try:
        return restorer_pb2.RestoreOptions(**values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"An option does not fit its type: {error}") from error


def progress(message: image_pb2.Progress) -> ClientProgress:
    """What is told on the way."""
    preview = message.preview.data if message.HasField("preview") else None
    return ClientProgress(
        step=message.step, steps=message.steps, share=message.share, preview=preview
    )


def restoration(message: restorer_pb2.RestoreResult, data: bytes) -> ClientRestoration:
    """The result, with the picture's file in ``data``."""
    report = message.report
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(Report)}
    for name, value in values.items():
        if isinstance(value, Mapping):
            values[name] = dict(value)
    values["warnings"] = tuple(report.warnings)
    values["caption"] = report.caption or None
    return ClientRestoration(
        image_bytes=data,
        report=Report(**values),
        uri=message.image.store_uri or None,
        link=message.image.uri or None,
    )


def server_info(message: restorer_pb2.RestorerServiceInfoResponse) -> ServerInfo:
    """What a server says about itself."""
    service = message.service
    return ServerInfo(
        release=service.release,
        digests=dict(service.digests),
        device=service.device,
        version=service.version,
        max_image_bytes=service.limits.max_image_bytes,
        max_image_pixels=service.limits.max_image_pixels,
        queue_depth=service.queue_depth,
        queue_capacity=service.queue_capacity,
        labels=tuple(message.labels),
        solvers=tuple(message.solvers),
        takes_uploads=message.takes_uploads,
        refused_release=service.refused_release,
    )
